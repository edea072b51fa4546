"""A labelled set of images in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images with their labels.

    images: uint8 [N, C, H, W]; labels: int64 [N], indices into classes. Raises ValueError for another dtype or shape,
    an empty set, and a label without a class.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4 or 0 in images.shape:
            raise ValueError(f"images: want uint8 [N, C, H, W], none of them 0; got {_describe(images)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels: want int64 [{len(images)}], one per image; got {_describe(labels)}")
        outside = (labels < 0) | (labels >= len(self.classes))
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"labels out of range: row {row} has label {int(labels[row])}; want 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def misfit(self, input_shape: tuple[int, int, int], classes: tuple[str, ...]) -> str | None:
        """What keeps a network that takes ``input_shape`` and knows ``classes`` from being tested on these images; None
        where nothing does. Names may differ where either set only numbers its classes.
        """
        if self.input_shape != input_shape:
            return f"want images {input_shape}; got {self.input_shape}"
        if len(self.classes) > len(classes):
            return f"want at most {len(classes)} classes; got {len(self.classes)}"
        only_numbered = any(names == numbered(self.labels[:0], len(names)) for names in (self.classes, classes))
        for i, (got, wanted) in enumerate(zip(self.classes, classes)):
            if got != wanted and not only_numbered:
                return f"want class {i} to be {wanted!r}; got {got!r}"
        return None


def numbered(labels: Tensor, at_least: int = 0) -> tuple[str, ...]:
    """Class names "0", "1", ... for labels, int64 [N], of a source that names none."""
    return tuple(str(i) for i in range(max(at_least, int(labels.max()) + 1 if len(labels) else 0)))


def channel_stats(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel.

    images: uint8 [N, C, H, W]; the results are in units of the full scale, 0 to 1, whatever the number of threads.
    """
    # Exact integer counts of the 256 values make the sums independent of any order of addition.
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)  # [C, 256]
    mean = (share * values).sum(1, keepdim=True)
    std = (share * (values - mean).square()).sum(1).sqrt()
    return tuple(mean.flatten().tolist()), tuple(std.tolist())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
