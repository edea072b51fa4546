"""What a run learns: the images of both splits, ready for one process."""

import hashlib
from dataclasses import dataclass

from aswl.training.config import TrainConfig
from aswl.training.data import Batches, ImageSet, channel_stats, load
from aswl.training.distributed import World

EVALUATION_BATCH = 500  # images


@dataclass(frozen=True)
class Task:
    """Batches of this process, and what describes the data: mean and std per channel of the training images, in units of
    the full scale, and a hash of all images and labels.
    """

    train: Batches
    test: Batches
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str


def prepare(config: TrainConfig, world: World) -> Task:
    """Load the data of a run.

    Raises ``ValueError`` where the splits do not fit each other, or the batch cannot be split among the processes, and
    what :func:`aswl.training.data.load` raises.
    """
    if config.batch_size % world.size:
        raise ValueError(f"batch_size: want a multiple of the {world.size} processes; got {config.batch_size}")
    train, test = (load(config.source(), split) for split in ("train", "test"))
    if misfit := test.misfit(train.input_shape, train.classes):
        raise ValueError(f"{config.data}: the test split is not like the training split: {misfit}")
    mean, std = channel_stats(train.images)
    std = tuple(s or 1.0 for s in std)  # a constant channel
    batches = Batches(
        train,
        config.batch_size // world.size,
        seed=config.seed,
        train=True,
        augment=config.augment,
        mean=mean,
        std=std,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
    )
    content = hashlib.blake2b(digest_size=8)
    for tensor in (train.images, train.labels, test.images, test.labels):
        content.update(tensor.contiguous().numpy())
    digest = content.hexdigest()
    return Task(batches, for_test(test, mean, std, world), train.input_shape, train.classes, mean, std, digest)


def for_test(images: ImageSet, mean: tuple[float, ...], std: tuple[float, ...], world: World) -> Batches:
    """Batches of this process's part of the images, in order, normalised by the training images' mean and std."""
    part = {"rank": world.rank, "world_size": world.size, "device": world.device}
    return Batches(images, EVALUATION_BATCH, train=False, mean=mean, std=std, **part)
