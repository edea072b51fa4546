"""Measurements on a GPU: ``bash bench/gpu.sh OUTDIR``; one module per section, each with ``measure(run)``."""
