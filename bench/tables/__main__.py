"""Write all generated tables anew: ``python -m bench.tables``."""

from bench.tables.pages import PAGES, insert

if __name__ == "__main__":
    for path, tables in PAGES.items():
        path.write_text(insert(path.read_text(encoding="utf-8"), tables()), encoding="utf-8")
