"""The command line: aswl train, eval, report, bench, info.

Training, reports and the libraries they need are imported by the command that needs them, so that ``aswl info`` works
where they are missing, and a missing one is one line.
"""

import importlib.metadata
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import aswl
from aswl_kernels import backends

EXTRAS = {
    "train": ("numpy", "PIL", "pyarrow", "yaml", "rich", "sklearn", "tyro"),
    "hub": ("datasets",),
    "tensorboard": ("tensorboard",),
}


def train(args: list[str]) -> int:
    """Train a network: aswl train [PRESET | FILE.yaml] [options]."""
    import tyro

    from aswl.deploy import report
    from aswl.training.config import TrainConfig, load_preset, presets
    from aswl.training.run import train
    from aswl.training.signals import Interrupted

    @dataclass(frozen=True)
    class Options(TrainConfig):
        def __post_init__(self) -> None:
            """Leave the checks to TrainConfig itself: tyro would draw a box around the one line they raise."""

    named = bool(args) and not args[0].startswith("-")
    preset = load_preset(args[0] if named else "digits")
    description = (
        f"Train a network sparse from scratch. Presets: {', '.join(presets())}, or a YAML file; digits if none."
    )
    prog = f"aswl train {args[0]}" if named else "aswl train [PRESET]"
    given = {arg.partition("=")[0] for arg in args}
    modes = {"density": "gamma", "gamma": "density"}  # asking for one mode leaves the preset's other one
    left = {other: None for mode, other in modes.items() if f"--{mode}" in given and f"--{other}" not in given}
    default = Options(**(vars(preset) | left))
    options = tyro.cli(Options, default=default, args=args[named:], prog=prog, description=description)
    try:
        run = train(TrainConfig(**vars(options)))
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":
            _say(str(stop))
        return 128 + stop.signum
    if run:
        path = report.write(run)
        print()
        report.show(run)
        print(f"report: {path}")
    return 0


def evaluate(args: list[str]) -> int:
    """Test the network of a run again: aswl eval RUN [--data PATH]."""
    import tyro

    from aswl.training.model_file import score

    def options(run: tyro.conf.Positional[Path], data: str | None = None) -> tuple[Path, str | None]:
        """Test the finished network of a run.

        Args:
            run: The run's folder.
            data: Where the test images are; None is where the run had them.
        """
        return run, data

    model, result = score(*tyro.cli(options, args=args, prog="aswl eval"))
    kept, size = model.weights()
    print(
        f"accuracy {result.accuracy:.2%} ({result.correct:,} of {result.images:,} images), "
        f"density {kept / size:.4f} ({kept:,} of {size:,} weights)"
    )
    return 0


def report(args: list[str]) -> int:
    """Show the numbers of a finished run: aswl report RUN."""
    import tyro

    from aswl.deploy import report

    def options(run: tyro.conf.Positional[Path]) -> Path:
        """Show the numbers of a finished run and write them to report.md.

        Args:
            run: The run's folder.
        """
        return run

    run = tyro.cli(options, args=args, prog="aswl report")
    path = report.write(run)
    report.show(run)
    print(f"report: {path}")
    return 0


def bench(args: list[str]) -> int:
    """Time the products of a network's layers on this machine: aswl bench [MODEL] [--tune]."""
    import tyro

    from aswl.training.bench import bench, table

    def options(
        model: tyro.conf.Positional[str] = "resnet20",
        batch: int = 128,
        density: float = 0.1,
        dtype: Literal["fp32", "bf16", "amp"] = "fp32",
        device: str = "auto",
        channels_last: bool = False,
        size: int | None = None,
        tune: bool = False,
    ) -> dict[str, Any]:
        """Time every different product of a network's sparse layers, forward and backward, with each kind of products that
        the device has: dense, fused (on a GPU), sparse (on a CPU).

        Args:
            model: The network: lenet300, lenet5, resnet20, 32, 44, 56, 110, vgg16, wrn22-2, 16-8, 28-10, mobilenetv2,
                or resnet50.
            batch: Images in a batch.
            density: Fraction of the weights to keep.
            dtype: Of weights and images, or amp: bf16 over fp32 weights.
            device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
            channels_last: Lay images out by channels.
            size: Pixels of an image, in both directions; None is what the network was published for.
            tune: Remember the fastest, for layers with products="auto".
        """
        return locals()

    print(table(list(bench(**tyro.cli(options, args=args, prog="aswl bench")))))
    return 0


def info(args: list[str]) -> int:
    """Say what this machine offers: versions, kernels, threads, optional packages."""
    if args:
        print("usage: aswl info")
        return 0 if args[0] in ("-h", "--help") else 2
    print(f"aswl {aswl.__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"threads: {torch.get_num_threads()} of {os.cpu_count()} processors")
    for name, backend in backends().items():
        print(f"{name}: {'yes' if backend.available else 'no'}, {backend.detail}")
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        state = f"lacks {', '.join(missing)}: pip install 'aswl[{extra}]'" if missing else "installed"
        print(f"extra {extra}: {state}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "report": report,
    "bench": bench,
    "info": info,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 1 and one line for an expected failure; 2 for a wrong call; 128 + n
    after signal n. With ASWL_DEBUG=1, failures show where they come from.
    """
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        lines = (f"  {name:<7}{command.__doc__}" for name, command in COMMANDS.items())
        print("\n".join(["usage: aswl COMMAND ...", "", *lines, "", "aswl COMMAND --help says more."]))
        return 0 if args else 2
    if args[0] not in COMMANDS:
        _say(f"error: want a command, one of {', '.join(COMMANDS)}; got {args[0]!r}")
        return 2
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
        try:
            return COMMANDS[args[0]](args[1:])
        except KeyboardInterrupt:
            _say("interrupted")
            return 130
        except Exception as error:
            if os.environ.get("ASWL_DEBUG") == "1" or not _expected(error):
                raise
            _say(f"error: {_one_line(error)}")
            return 1


def _expected(error: Exception) -> bool:
    """Whether it is the user's, the machine's or the training's doing, which one line explains, and not a mistake here."""
    known: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, FloatingPointError, aswl.DeadLayerError)
    for module, name in (("checkpoint", "CheckpointError"), ("distributed", "RankMismatchError")):
        if loaded := sys.modules.get(f"aswl.training.{module}"):  # not imported, it cannot have raised
            known += (getattr(loaded, name),)
    return isinstance(error, known)


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed: pip install 'aswl[train]'"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def _say(line: str) -> None:
    """One line on the standard error, with the rank of this process where there are several."""
    rank = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    sys.stderr.write(f"aswl: {rank}{line}\n")  # in one piece: print would let two processes mix their lines
