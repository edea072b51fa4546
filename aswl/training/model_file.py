"""model.pt: a finished network as an ordinary model, with all that is needed to build it and feed it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from aswl.training import checkpoint, models
from aswl.training.checkpoint import CheckpointError
from aswl.training.config import load_preset
from aswl.training.data import load
from aswl.training.distributed import join
from aswl.training.evaluate import Score, evaluate
from aswl.training.task import Task, for_test

NAME = "model.pt"


@dataclass(frozen=True)
class FinishedModel:
    """A network with zeros in place of pruned weights. ``layers``: names of those that were pruned; ``mean``, ``std``:
    per channel, in units of the full scale, what its input is normalised by.
    """

    network: nn.Module
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[str, ...]

    def weights(self) -> tuple[int, int]:
        """How many weights of the pruned layers are not zero, and how many there are."""
        pruned = [self.network.get_submodule(name).weight for name in self.layers]
        return sum(int(weight.count_nonzero()) for weight in pruned), sum(weight.numel() for weight in pruned)


def save(run: Path, model: str, network: nn.Module, task: Task, layers: Iterable[str]) -> None:
    """Write the network, built as ``model`` and made ordinary again, into a run's folder, whole or not at all."""
    state = {
        "model": model,
        "state": network.state_dict(),
        "input_shape": task.input_shape,
        "classes": task.classes,
        "mean": task.mean,
        "std": task.std,
        "layers": tuple(layers),
    }
    checkpoint.write(state, run / NAME)


def read(run: Path) -> FinishedModel:
    """Read the network of a run; raises ``CheckpointError`` for a file that is missing, damaged or foreign."""
    state = checkpoint.load(run / NAME)
    try:
        network = models.build(state.pop("model"), state["input_shape"], len(state["classes"]))
        network.load_state_dict(state.pop("state"))
        return FinishedModel(network, **state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{run / NAME}: not the model of a run ({error})") from error


def score(run: Path, data: str | None = None) -> tuple[FinishedModel, Score]:
    """Evaluate the network of a run on its test images, or on those of another source, as the run itself did.

    Raises ``CheckpointError`` for a run without a whole model, and ``ValueError`` for images that it cannot take.
    """
    model, config = read(run), load_preset(run / "config.yaml")
    images = load(data or config.source(), "test")
    if misfit := images.misfit(model.input_shape, model.classes):
        raise ValueError(f"data: {misfit}")
    with join(config.device) as world:
        batches = for_test(images, model.mean, model.std, world)
        return model, evaluate(model.network.to(world.device), batches, world, config.amp)
