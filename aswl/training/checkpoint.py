"""Training state on disk: written as a whole or not at all, and checked before it is trusted."""

import io
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = "aswl-checkpoint-1"
NAME = re.compile(r"checkpoint-(\d+)\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged, or is not one."""


def save(state: dict[str, Any], folder: str | Path, step: int, keep: int = 2) -> Path:
    """Write state to checkpoint-{step}.pt in folder, then remove all but the newest keep checkpoints.

    state: tensors, numbers, strings, None, and lists, tuples and dicts of them; the key "format" is taken. Raises
    TypeError for anything else, ValueError for keep below 1, and OSError when the file cannot be written; earlier
    checkpoints then stay as they were.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"checkpoint: want keep at least 1 and step at least 0; got {keep} and {step}")
    folder = Path(folder)
    path = folder / f"checkpoint-{step:08d}.pt"
    for stale in folder.glob("checkpoint-*.pt.tmp"):  # left by a run that was killed
        stale.unlink()
    write(state, path)
    # A new run in a used folder writes smaller steps than those it finds: never prune what was just written.
    others = [other for other in _newest_first(folder) if other != path]
    for other in others[keep - 1 :]:
        other.unlink()
    return path


def write(state: dict[str, Any], path: Path) -> None:
    """Write state to one file, whole or not at all; raises TypeError and OSError as :func:`save` does."""
    content = _serialise(state)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(content, path)
    except OSError as error:
        message = f"{path.name} not saved, what was there is intact: {error.strerror or error}"
        raise OSError(error.errno, message, str(path)) from error


def load(path: str | Path) -> dict[str, Any]:
    """Read one checkpoint, tensors on the CPU; raises CheckpointError for a file that is missing, damaged or foreign."""
    path = Path(path)
    try:
        # PyTorch's reader does not compare the zip's CRCs, so that a flipped bit would become a wrong weight.
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise CheckpointError(f"{path}: damaged, wrong checksum in {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: foreign, it holds other objects than tensors and plain containers") from error
    except Exception as error:  # the zip reader and PyTorch answer damage with many types
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: damaged or foreign ({reason})") from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: foreign, a PyTorch file without the mark {FORMAT}")
    return state


def latest(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Find and read the newest readable checkpoint of folder; None when there is none.

    Warns about every file that it passes over. Raises CheckpointError when there are files and none is readable.
    """
    paths = _newest_first(Path(folder))
    for path in paths:
        try:
            return path, load(path)
        except CheckpointError as error:
            warnings.warn(f"checkpoint passed over: {error}", stacklevel=2)
    if paths:
        raise CheckpointError(f"{folder}: none of {len(paths)} checkpoints is readable")
    return None


def _serialise(state: dict[str, Any]) -> memoryview:
    if "format" in state:
        raise ValueError("checkpoint: the key 'format' is taken")
    content = io.BytesIO()
    torch.save({**state, "format": FORMAT}, content)
    content.seek(0)
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(content):
        raise TypeError(f"checkpoint: want tensors and plain containers; state holds {', '.join(unsafe)}")
    return content.getbuffer()


def _write_whole(content: memoryview, path: Path) -> None:
    """Write a file that is there whole or not at all, whenever the machine stops."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _newest_first(folder: Path) -> list[Path]:
    steps = {path: int(match[1]) for path in folder.glob("checkpoint-*.pt") if (match := NAME.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__, reverse=True)
