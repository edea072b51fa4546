"""Build script. The package is pure Python so far; the version is read from the source, without importing torch."""

import re
from pathlib import Path

from setuptools import setup

source = Path(__file__).parent / "aswl" / "__init__.py"
setup(version=re.search(r'__version__ = "(.+)"', source.read_text(encoding="utf-8")).group(1))
