"""The README's code runs, and generated tables are those that the result rows give."""

import re
import runpy
from pathlib import Path

import pytest

from bench.tables import pages

README = Path(__file__).parents[1] / "README.md"


def test_python_code_runs(capsys, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    script = tmp_path / "quick_start.py"
    script.write_text(blocks[0], encoding="utf-8")
    scope = runpy.run_path(str(script))
    assert "total" in capsys.readouterr().out
    plain, images, labels = scope["plain"], scope["images"], scope["labels"]
    assert (plain(images).argmax(1) == labels).float().mean() > 0.9
    kept = sum(int((layer.weight != 0).sum()) for layer in plain if hasattr(layer, "weight"))
    assert kept == round(0.05 * 50_200)


@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_tables_are_generated(path):
    page = path.read_text(encoding="utf-8")
    assert pages.insert(page, pages.PAGES[path]()) == page
