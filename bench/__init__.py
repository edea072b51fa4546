"""Measurements: one module per claim, ``python -m bench.<claim>``; rows go to ``bench/results/``."""
