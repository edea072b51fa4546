"""A CUDA graph of a training step; without a GPU, a capture and a replay that do on the CPU what a graph does."""

import contextlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from aswl_kernels._triton import SERVED

WAITS = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "unique_dim",
}
WAITS |= {"_unique2", "unique_consecutive", "bincount", "repeat_interleave"}  # for values, or for shapes made of them
FROM_HOST = {"lift", "lift_fresh", "lift_fresh_copy"}  # how torch.tensor(number) ends: a copy to the device
METHODS = {"tolist", "numpy", "__array__", "cpu", "cuda", "item", "__bool__", "__int__", "__float__", "__index__"}
IDLE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"}


class CaptureError(RuntimeError):
    """What a graph cannot hold."""


class _Methods(TorchFunctionMode):
    """Refuses what reads a tensor's memory without calling an operator."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in METHODS:
            raise CaptureError(f"{name} reads a tensor on the host")
        return func(*args, **kwargs or {})


class Call(NamedTuple):
    """Something a device does: how to do it again, and what it made, which then is copied to where it was."""

    name: str
    again: Callable[[], object]
    made: list[Tensor | None]  # None in the place of views and of what was changed in place
    works: bool  # whether a device would be set to work


class Tape(TorchDispatchMode):
    """Records, while active, every operator call with the memory that it reads and writes; ``replay`` does them again.

    It knows no Python, as a graph does not: numbers are those of the capture, tensors are addresses. A tensor made
    without a device would be the host's, and is made on none. Recording does a step, which a real capture does not.
    ``launchers``: operators of ours are recorded as what their Triton kernels' launchers do, launch by launch.
    """

    def __init__(self, launchers: bool = False) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.launchers = launchers
        self._modes = contextlib.ExitStack()

    def __enter__(self):
        for mode in (_Methods(), torch.device("meta")):
            self._modes.enter_context(mode)
        if self.launchers:
            self._modes.enter_context(_recorded_launches(self.calls))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._modes.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        schema, kwargs = func._schema, kwargs or {}
        name = schema.name.partition("::")[2]
        if self.launchers and func.namespace == "aswl" and name in SERVED:
            with _again_under(self):
                return SERVED[name](*args, *(a.default_value for a in schema.arguments[len(args) :]))
        if name in WAITS:
            raise CaptureError(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype == torch.bool for t in args[1]
        ):
            raise CaptureError(f"{name} by a mask waits for the device")
        if name in FROM_HOST:
            raise CaptureError(f"{name}: a tensor made of numbers on the host")
        out = _run(func, args, kwargs)
        held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [None if t.untyped_storage().data_ptr() in held else _alias(t) for t in _tensors(out)]
        works = name not in IDLE and (schema.is_mutable or any(t is not None for t in made))
        args, kwargs = tree_map_only(Tensor, _alias, (args, kwargs))
        self.calls.append(Call(name, partial(_run, func, args, kwargs), made, works))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again, from and to the same memory."""
        for call in self.calls:
            for old, new in zip(call.made, _tensors(call.again()), strict=True):
                if old is not None:
                    old.copy_(new)

    def launches(self) -> Counter:
        """How often each operator would have set a device to work: neither views nor bare allocations."""
        return Counter(call.name for call in self.calls if call.works)


def _tensors(tree: object) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _alias(tensor: Tensor) -> Tensor:
    """The same memory: a reference to the tensor itself would make autograd copy a gradient that it could keep."""
    with torch._C.DisableTorchFunction():
        return tensor.detach()


def _run(func, args, kwargs):
    with torch._C.DisableTorchFunction():  # what an operator does inside is its own affair
        return func(*args, **kwargs)


@contextlib.contextmanager
def _again_under(mode: TorchDispatchMode):
    TorchDispatchMode.__enter__(mode)
    try:
        yield
    finally:
        TorchDispatchMode.__exit__(mode, None, None, None)


@contextlib.contextmanager
def _recorded_launches(calls: list[Call]):
    """Launches of Triton kernels, which the interpreter runs, go to ``calls`` with their arguments."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def launch(kernel, *args, **options):
        def again() -> None:
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                run(kernel, *args, **options)

        calls.append(Call(kernel.__name__, again, [], True))
        again()

    with mock.patch.object(InterpretedFunction, "run", launch):
        yield


@contextlib.contextmanager
def warming_up(device: str):
    """Where the steps before a capture belong: on a stream of their own."""
    if device == "cpu":
        yield
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


def capture(step: Callable[[], object], device: str, launchers: bool = False) -> Callable[[], None]:
    """A function that repeats the step, which has run a few times before, without Python; making it does one, too."""
    if device == "cpu":
        tape = Tape(launchers)
        with tape:
            step()
        return tape.replay
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    return graph.replay
