"""Where the rows of a run go: a file always, the terminal, and TensorBoard when asked for."""

import json
import os
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

Row = dict[
    str, Any
]  # network ("dense" or "sparse"), step, steps, epoch, loss, density, lr, images_per_s, accuracy or None
PLAIN_EVERY = 5.0  # seconds between two lines where the output is not a terminal


class Sink(Protocol):
    """Something that takes rows."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """Rows as JSON, one per line. ``keep``: bytes of an existing file to keep, cut back to whole lines."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._path = path
        path.touch()
        os.truncate(path, path.read_bytes()[:keep].rfind(b"\n") + 1)

    def write(self, row: Row) -> None:
        line = json.dumps({key: value for key, value in row.items() if value is not None}) + "\n"
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:  # a full disk shows when the file is closed, and does not say which file
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def position(self) -> int:
        """The bytes of all rows so far, which are on the disk when this returns."""
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def close(self) -> None:
        pass


class Lines:
    """Plain lines on the standard output, one every few seconds and at the end."""

    def __init__(self) -> None:
        self._next = 0.0

    def write(self, row: Row) -> None:
        now = time.monotonic()
        if now >= self._next or row["step"] == row["steps"]:
            self._next = now + PLAIN_EVERY
            head = f"{row['network']:>6}  epoch {row['epoch']:>3}  step {row['step']}/{row['steps']}"
            print(f"{head}  {describe(row)}", flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A progress bar per network on the terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        numbers = TextColumn("{task.fields[numbers]}")
        columns = (TextColumn("{task.description:>6}"), BarColumn(None), TaskProgressColumn(), numbers)
        self._progress = Progress(*columns, TimeRemainingColumn(), expand=True)
        self._progress.start()
        self._tasks: dict[str, Any] = {}

    def write(self, row: Row) -> None:
        name, numbers = row["network"], describe(row | {"accuracy": None})  # all of them do not fit into 80 columns
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=row["steps"], numbers="")
        self._progress.update(self._tasks[name], completed=row["step"], numbers=numbers)

    def close(self) -> None:
        self._progress.stop()


class TensorBoard:
    """Scalars for TensorBoard in a folder. Raises ``ImportError`` where it is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ImportError("--tensorboard needs tensorboard: pip install 'aswl[tensorboard]'") from error
        self._writer = SummaryWriter(str(folder))

    def write(self, row: Row) -> None:
        for key in ("loss", "density", "lr", "images_per_s", "accuracy"):
            if row[key] is not None:
                self._writer.add_scalar(f"{row['network']}/{key}", row[key], row["step"])

    def close(self) -> None:
        self._writer.close()


class Log:
    """All sinks of this process; a process that does not write has none. A context that closes them."""

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self.sinks = list(sinks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            for sink in self.sinks:
                closing.callback(sink.close)

    def write(self, row: Row) -> None:
        for sink in self.sinks:
            sink.write(row)

    def position(self) -> int:
        """Bytes of the metrics file; 0 without one."""
        return sum(sink.position() for sink in self.sinks if isinstance(sink, MetricsFile))


def console() -> Sink:
    """The progress bar on a terminal, plain lines elsewhere."""
    return Bar() if sys.stdout.isatty() else Lines()


def describe(row: Row) -> str:
    """The numbers of a row as text."""
    parts = [f"loss {row['loss']:.4f}", f"density {row['density']:.4f}", f"{row['images_per_s']:,.0f} images/s"]
    if row["accuracy"] is not None:
        parts.insert(2, f"accuracy {row['accuracy']:.2%}")
    return "  ".join(parts)
