"""Image sets held in memory: readers for the usual formats, and batches that resume from two integers."""

from aswl.training.data.batches import Augment, Batches
from aswl.training.data.images import ImageSet, channel_stats
from aswl.training.data.sources import load

__all__ = ["Augment", "Batches", "ImageSet", "channel_stats", "load"]
