"""One run of a grid: a network trained by a method, evaluated once."""

import random
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from aswl import DeadLayerError, optim
from aswl.training import models
from aswl.training.data import Batches, ImageSet, channel_stats, load
from aswl.training.distributed import World
from aswl.training.evaluate import evaluate, precision
from aswl.training.loop import lr_factor
from aswl.training.task import for_test
from bench.baselines import METHODS
from bench.baselines.method import prunable

HELD_OUT = 10_000  # of the training images, the last ones, where options are chosen


@dataclass(frozen=True)
class Recipe:
    """How all methods train a network: what is not the method's. Rates fall along a cosine after the warm-up."""

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = False
    warmup_epochs: float = 0.0
    augment: str = "none"
    amp: str = "none"


@dataclass(frozen=True)
class Run:
    """One cell of a grid: ``method`` with ``options`` trains ``model`` to ``density`` on a data set of ``$ASWL_DATA``.

    ``split``: "test", or "validation": the last 10,000 training images, which are then not trained on.
    """

    model: str
    data: str
    density: float
    method: str
    seed: int
    recipe: Recipe
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"

    def key(self) -> dict[str, Any]:
        """What a row must have in common with this run to be its result."""
        return asdict(self)


@cache
def images(folder: Path, split: str) -> tuple[ImageSet, ImageSet]:
    """The images to train on and those to evaluate on."""
    train = load(str(folder), "train")
    if split == "test":
        return train, load(str(folder), "test")
    parts = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    return tuple(ImageSet(train.images[part], train.labels[part], train.classes) for part in parts)


def train(run: Run, folder: Path, device: torch.device) -> dict[str, Any]:
    """Train as the run says, with the data set in ``folder``; what came of it, as plain numbers.

    ``accuracy`` in %, None where training ended early, whose reason ``failed`` then tells; ``kept`` of ``size``: weights
    of all layers that count which are not zero at the end, and all of them; ``exact``: whether
    that is round(density * size); ``densities``: by layer; ``by_epoch``: of all layers at the end of each epoch, and
    ``losses``: the mean training loss of each. A line on stderr tells of each epoch.
    """
    random.seed(run.seed)
    torch.manual_seed(run.seed)
    recipe = run.recipe
    learned, judged = images(folder, run.split)
    mean, std = channel_stats(learned.images)
    options = {"seed": run.seed, "augment": recipe.augment, "mean": mean, "std": std, "device": device}
    batches = Batches(learned, recipe.batch_size, train=True, **options)
    steps = recipe.epochs * len(batches)
    model = models.build(run.model, learned.input_shape, len(learned.classes))
    model = model.to(device, memory_format=torch.channels_last)
    method = METHODS[run.method](model, density=run.density, steps=steps, **run.options)
    groups = method.param_groups(lr=recipe.lr, weight_decay=recipe.weight_decay)
    optimizer = optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov)
    method.attach(optimizer)
    warmup = recipe.warmup_epochs * len(batches)
    schedule = LambdaLR(optimizer, lambda step: lr_factor(step, steps, warmup, "cosine"))
    began, failed, by_epoch, losses = time.perf_counter(), None, [], []
    try:
        for epoch in range(recipe.epochs):
            total = torch.zeros((), device=device)
            for x, y in batches.epoch(epoch):
                with precision(recipe.amp, device):
                    logits = model(x.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits.float(), y) + method.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
            by_epoch.append(round(method.density, 6))
            losses.append(round(total.item() / len(batches), 4))
            print(f"epoch {epoch + 1} of {recipe.epochs}: loss {losses[-1]}, density {by_epoch[-1]}", file=sys.stderr)
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is {loss.item()} after epoch {epoch + 1}")
    except (DeadLayerError, FloatingPointError) as error:
        failed = str(error)
    seconds = time.perf_counter() - began
    plain = model if failed else method.finalize()
    weights = {name: layer.weight for name, layer in prunable(plain).items()}
    kept = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    size = sum(weight.numel() for weight in weights.values())
    if not failed:
        world = World(device)
        score = evaluate(plain, for_test(judged, mean, std, world), world, recipe.amp)
    return {
        "accuracy": None if failed else round(100 * score.accuracy, 2),
        "failed": failed,
        "kept": sum(kept.values()),
        "size": size,
        "exact": not failed and sum(kept.values()) == round(run.density * size),
        "densities": {name: round(kept[name] / weight.numel(), 5) for name, weight in weights.items()},
        "by_epoch": by_epoch,
        "losses": losses,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }
