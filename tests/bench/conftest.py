"""What the tests of the benches share."""

import pytest

from bench import rows


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of result rows."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    return tmp_path
