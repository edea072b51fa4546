"""The training loop of one network, whose whole state goes to a checkpoint and back."""

import math
import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from aswl import ASWL, optim
from aswl.training import checkpoint, models
from aswl.training.config import TrainConfig
from aswl.training.distributed import World
from aswl.training.evaluate import Score, evaluate, precision
from aswl.training.log import Log
from aswl.training.signals import Interrupted, SignalWatch
from aswl.training.task import Task


def lr_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """The share of the peak learning rate at a step, counted from 0: linear for ``warmup`` steps, then "constant", or
    "cosine" to 0 at ``steps``.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(steps - warmup, 1), 1)))


class Loop:
    """Trains one network, sparse or its dense twin, from the same initial weights by the same recipe.

    ``identity`` goes into the checkpoints: what a run must have in common with them to continue them. Seeds Python's and
    PyTorch's generators; all processes draw the same numbers. Raises ``ValueError`` for what the model and the sparsifier
    refuse.
    """

    def __init__(
        self, config: TrainConfig, task: Task, world: World, log: Log, identity: dict[str, Any], *, sparse: bool
    ) -> None:
        self.config, self.task, self.world, self.log, self.identity = config, task, world, log, identity
        self.name = "sparse" if sparse else "dense"
        self.steps = config.epochs * len(task.train)
        random.seed(config.seed)
        torch.manual_seed(config.seed)
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = models.build(config.model, task.input_shape, len(task.classes))
        self.model.to(world.device, memory_format=self.layout)
        self.sparsifier = self._sparsify() if sparse else None
        groups = self._param_groups()
        if config.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = optim.SGD(groups, momentum=config.momentum)
        else:
            self.optimizer = optim.AdamW(groups)
        if self.sparsifier:
            self.sparsifier.attach(self.optimizer)
        warmup = config.warmup_epochs * len(task.train)
        self.lr_factor = partial(lr_factor, steps=self.steps, warmup=warmup, schedule=config.lr_schedule)
        self.schedule = LambdaLR(self.optimizer, self.lr_factor)
        self.step = self.epoch = self.batch = 0  # steps done; epochs done; batches done of the epoch after
        self.score: Score | None = None  # of the last epoch
        self.seconds = self.training_seconds = 0.0  # with and without evaluations and checkpoints
        self._mark = self._began = 0.0
        self._row = {"loss": torch.zeros((), device=world.device), "steps": 0, "since": 0.0}

    @property
    def finished(self) -> bool:
        return self.epoch == self.config.epochs

    def fit(self, watch: SignalWatch) -> None:
        """Train to the end, or until a signal, with checkpoints in the run's folder.

        Raises ``Interrupted`` after a signal, ``FloatingPointError`` for a loss that is not finite, and what the
        sparsifier, the checkpoints and the log raise.
        """
        config, network = self.config, self._wrap()
        self._mark = time.perf_counter()
        self._began = self._mark - self.seconds
        while not self.finished:
            for images, labels in self.task.train.epoch(self.epoch, self.batch):
                self._update(network, images, labels)
                if self.step % config.log_every == 0 and self.batch < len(self.task.train):
                    self._write_row()
                signum = self.world.largest(watch.signum)
                if signum or self.step % config.checkpoint_every == 0:
                    self._save()
                self._stop(signum)
            self._settle()
            self.world.share_(self.model.buffers())  # running statistics are each process's own since its last forward
            self.score = evaluate(self.model, self.task.test, self.world, config.amp)
            self._mark = time.perf_counter()
            self._write_row(self.score)
            self.epoch, self.batch = self.epoch + 1, 0
        self._save()
        self._stop(self.world.largest(watch.signum))

    def result(self) -> dict[str, Any]:
        """What a report says of a finished network: plain numbers; accuracy in [0, 1], times in seconds."""
        images = self.steps * self.config.batch_size
        return {
            "accuracy": self.score.accuracy,
            "correct": self.score.correct,
            "images": self.score.images,
            "steps": self.steps,
            "seconds": self.seconds,
            "images_per_s": images / self.training_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint, which is one of the same identity."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.sparsifier:
            self.sparsifier.load_state_dict(state["sparsifier"])
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.score = state["score"] and Score(*state["score"])
        self.seconds, self.training_seconds = state["seconds"], state["training_seconds"]
        self._row = state["row"] | {"loss": state["row"]["loss"].to(self.world.device)}
        random.setstate(state["random"])
        torch.set_rng_state(state["torch_random"])
        if state["cuda_random"] is not None and self.world.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.world.device)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on as if nothing had happened: tensors and plain containers."""
        device = self.world.device
        return {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "sparsifier": self.sparsifier.state_dict() if self.sparsifier else None,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "score": self.score and tuple(self.score),
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "row": self._row,
            "random": random.getstate(),
            "torch_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "metrics": self.log.position(),
        }

    def _sparsify(self) -> ASWL:
        config = self.config
        asked = {name: getattr(config, name) for name in ("begin", "end", "pruned_decay")}
        return ASWL(
            self.model,
            density=config.density,
            gamma=config.gamma,
            alpha=config.alpha,
            steps=self.steps,
            schedule=config.schedule,
            exclude=config.exclude,
            refresh_every=config.refresh_every,
            products=config.products,
            thresholding=config.thresholding,
            **{name: value for name, value in asked.items() if value is not None},
        )

    def _param_groups(self) -> Iterable[dict[str, Any]]:
        config = self.config
        options = {"lr": config.lr, "weight_decay": config.weight_decay}
        if self.sparsifier is None:
            return [{"params": self.model.parameters(), **options}]
        adaptive = config.optimizer == "adamw" and config.density is not None
        return self.sparsifier.param_groups(attention_lr=config.attention_lr, adaptive=adaptive, **options)

    def _wrap(self) -> Callable[[Tensor], Tensor]:
        network: nn.Module = self.model
        if self.world.size > 1:
            ids = [self.world.device] if self.world.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        return torch.compile(network) if self.config.compile else network

    def _update(self, network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
        with precision(self.config.amp, self.world.device):
            loss = F.cross_entropy(network(images.contiguous(memory_format=self.layout)), labels)
        if self.config.gamma is not None and self.sparsifier:
            loss = loss + self.sparsifier.penalty()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.step, self.batch = self.step + 1, self.batch + 1
        self._row["loss"] += loss.detach()
        self._row["steps"] += 1

    def _stop(self, signum: int) -> None:
        if signum:
            launch = f"torchrun --nproc-per-node {self.world.size} -m aswl" if self.world.size > 1 else "aswl"
            command = f"{launch} train {self.config.output / 'config.yaml'} --resume"
            place = f"step {self.step} of {self.steps} ({self.name})"
            raise Interrupted(signum, f"stopped at {place}, checkpoint written; continue with: {command}")

    def _settle(self) -> None:
        """Bring the running loss of all processes together; this waits for the device, so that the clock is right."""
        self._row["loss"] = self.world.sum(self._row["loss"]) / self.world.size
        loss = self._row["loss"].item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {self.step}: the loss is {loss} ({self.name}); try a smaller --lr")
        now = time.perf_counter()
        self.training_seconds += now - self._mark
        self._mark = now

    def _write_row(self, score: Score | None = None) -> None:
        self._settle()
        row = self._row
        self.log.write(
            {
                "network": self.name,
                "step": self.step,
                "steps": self.steps,
                "epoch": self.epoch + 1,
                "loss": row["loss"].item() / row["steps"],
                "density": self.sparsifier.density if self.sparsifier else 1.0,
                "lr": self.config.lr * self.lr_factor(self.step - 1),
                "images_per_s": row["steps"] * self.config.batch_size / (self.training_seconds - row["since"]),
                "accuracy": score and score.accuracy,
            }
        )
        self._row = {"loss": torch.zeros_like(row["loss"]), "steps": 0, "since": self.training_seconds}

    def _save(self) -> None:
        self._settle()
        self.world.check_same(self.model, self.step)
        self.seconds = time.perf_counter() - self._began
        if self.world.main:
            checkpoint.save(self.state_dict(), self.config.output / "checkpoints" / self.name, self.step)
        self._mark = time.perf_counter()
