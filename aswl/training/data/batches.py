"""Batches that are a function of (seed, epoch, batch, rank) only, so that training resumes from two integers."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from aswl.training.data.images import ImageSet

Augment = Literal["none", "crop", "crop_flip"]
PADDING = 4


class Batches:
    """Normalised batches of an ImageSet, for one rank of world_size.

    batch_size counts the images of one rank. Training permutes the set anew in every epoch and deals it out in equal
    parts: up to world_size - 1 images sit an epoch out, and with drop_last the incomplete batch does too. Evaluation
    keeps the order and drops nothing, so that ranks may differ by an image. mean and std are per channel, in units of
    the full scale. The set is held on device. Raises ValueError for a batch larger than a training rank's part and for
    arguments out of range.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        seed: int = 0,
        train: bool,
        augment: Augment = "none",
        mean: Sequence[float],
        std: Sequence[float],
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        drop_last: bool = True,
    ) -> None:
        if augment not in get_args(Augment):
            raise ValueError(f"augment: want one of {', '.join(get_args(Augment))}; got {augment!r}")
        if augment != "none" and not train:
            raise ValueError(f"augment: evaluation wants 'none'; got {augment!r}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: want 0 to world_size - 1 = {world_size - 1}; got {rank}")
        channels = data.input_shape[0]
        if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
            raise ValueError(f"mean, std: want {channels} values each, std positive; got {tuple(mean)}, {tuple(std)}")
        part = len(data) // world_size if train else len(range(rank, len(data), world_size))
        if batch_size < 1 or (train and batch_size > part):
            bounds = f"1 to {part}, the images of a rank" if train else "1 or more"
            raise ValueError(f"batch_size: want {bounds}; got {batch_size}")
        self.batch_size, self.train, self.augment, self.seed = batch_size, train, augment, seed
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self._part = part - part % batch_size if train and drop_last else part
        self._images, self._labels = data.images.to(device), data.labels.to(device)
        std_ = torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
        self._scale = 1 / (255 * std_)
        self._shift = -torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1) / std_

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        return math.ceil(self._part / self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, float32 [B, C, H, W], and labels, int64 [B], of one epoch from batch start on.

        Raises ValueError for a start outside 0 to len(self).
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start: want 0 to {len(self)}, the batches of an epoch; got {start}")
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self._images)
        order = torch.randperm(n, generator=_generator("order", self.seed, epoch)) if self.train else torch.arange(n)
        rows = order[self.rank :: self.world_size][: self._part].to(self.device)
        for i in range(start, len(self)):
            batch = rows[i * self.batch_size : (i + 1) * self.batch_size]
            images = self._images[batch]
            if self.augment != "none":
                generator = _generator("augment", self.seed, epoch, i, self.rank)
                images = random_crop(images, flip=self.augment == "crop_flip", generator=generator)
            yield images.to(torch.float32).mul_(self._scale).add_(self._shift), self._labels[batch]


def random_crop(images: Tensor, *, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift every image by up to 4 pixels each way, black coming in, and with flip mirror every other one at random.

    images: uint8 [B, C, H, W] on any device, like the result; generator: on the CPU, so that devices agree.
    """
    count, channels, height, width = images.shape
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)  # [B, H], in the padded image
    columns = left + torch.arange(width)  # [B, W]
    if flip:
        mirrored = torch.randint(0, 2, (count, 1), generator=generator, dtype=torch.bool)
        columns = torch.where(mirrored, columns.flip(1), columns)
    pixels = rows[:, :, None] * (width + 2 * PADDING) + columns[:, None, :]  # [B, H, W]
    # One gather along flat pixels: five times faster on the CPU than indexing with rows and columns.
    pixels = pixels.view(count, 1, -1).expand(-1, channels, -1).to(images.device)
    return F.pad(images, (PADDING,) * 4).flatten(2).gather(2, pixels).view_as(images)


def _generator(*key: str | int) -> torch.Generator:
    """A generator of its own for every key; hashing keeps (seed 1, epoch 2) apart from (seed 2, epoch 1)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
