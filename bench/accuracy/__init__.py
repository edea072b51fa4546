"""Accuracy of sparse training, ours and its peers, in one harness: see ``python -m bench.accuracy --help``."""
