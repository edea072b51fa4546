"""The generated tables of README.md and docs/: ``python -m bench.tables`` writes them between their marks."""
