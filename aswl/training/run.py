"""One run, from its options to a folder that holds everything about it."""

import json
import os
import shlex
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import aswl
from aswl.training import checkpoint, models
from aswl.training.config import TrainConfig, load_preset
from aswl.training.data import load
from aswl.training.distributed import World, join
from aswl.training.evaluate import Score, evaluate
from aswl.training.log import Log, MetricsFile, TensorBoard, console
from aswl.training.loop import Loop
from aswl.training.signals import Interrupted, SignalWatch
from aswl.training.task import Task, for_test, prepare

HOLDINGS = ("config.yaml", "metrics.jsonl", "checkpoints")  # what makes a folder that of a run


def train(config: TrainConfig) -> Path | None:
    """Train as asked, and write the run's folder: config.yaml, metrics.jsonl, checkpoints, model.pt and report.json.

    Returns the folder in the process that writes it, None in others. Raises ``ValueError`` for options that do not fit
    the data, the machine, or the run in the folder, ``Interrupted`` after a signal, ``OSError`` where the disk fails,
    and what :class:`aswl.training.loop.Loop` raises.
    """
    folder = config.output or Path("runs") / "unnamed"
    config = replace(config, output=folder)
    if config.threads:
        torch.set_num_threads(config.threads)
    with join(config.device) as world:
        if world.main:
            _check_folder(folder, config.resume)
        task = prepare(config, world)
        networks = ("dense", "sparse") if config.twin else ("sparse",)
        states = {name: _newest(folder / "checkpoints" / name, config, world) for name in networks}
        kept = max((state["metrics"] for state in states.values() if state), default=0)
        results: dict[str, Any] = {}
        with ExitStack() as context:
            log = Log()
            for name in networks:
                loop = Loop(config, task, world, log, sparse=name == "sparse")
                if states[name]:
                    loop.load_state_dict(states[name])
                if not log.sinks and world.main:  # only now nothing can be refused any more
                    log = loop.log = context.enter_context(_open_log(config, kept))
                if not loop.finished:
                    _fit(loop, context)
                results[name] = loop.result()
        _finish(loop, results)
    return folder if world.main else None
