"""A CUDA graph of a training step; without a GPU, a capture and a replay that do on the CPU what a graph does."""

import contextlib
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class Tape(TorchDispatchMode):
    """Records, while active, every operator call with the memory that it reads and writes; ``replay`` does them again.

    It knows no Python, as a graph does not: numbers are those of the capture, tensors are addresses. A tensor made
    without a device would be the host's, and is made on none. Recording does a step, which a real capture does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self._modes = contextlib.ExitStack()

    def __enter__(self):
        for mode in (_Methods(), torch.device("meta")):
            self._modes.enter_context(mode)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._modes.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if name in WAITS:
            raise CaptureError(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype == torch.bool for t in args[1]
        ):
            raise CaptureError(f"{name} by a mask waits for the device")
        if name in FROM_HOST:
            raise CaptureError(f"{name}: a tensor made of numbers on the host")
        kwargs = kwargs or {}
        out = _run(func, args, kwargs)
        held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        made = [t.untyped_storage().data_ptr() not in held for t in outputs]  # others are views, or changed in place
        self.calls.append((func, args, kwargs, outputs, made))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again, from and to the same memory."""
        for func, args, kwargs, outputs, made in self.calls:
            again = [t for t in tree_leaves(_run(func, args, kwargs)) if isinstance(t, Tensor)]
            for old, new, fresh in zip(outputs, again, made, strict=True):
                if fresh:
                    old.copy_(new)

    def launches(self) -> Counter:
        """How often each operator would have set a device to work: neither views nor bare allocations."""
        works = [(func._schema, any(made) or func._schema.is_mutable) for func, _, _, _, made in self.calls]
        names = [schema.name.partition("::")[2] for schema, does in works if does]
        return Counter(name for name in names if name not in IDLE)


def _run(func, args, kwargs):
    with torch._C.DisableTorchFunction():  # what an operator does inside is its own affair
        return func(*args, **kwargs)


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


def capture(step: Callable[[], object], device: str) -> Callable[[], None]:
    """A function that repeats the step, which has run a few times before, without Python; making it does one, too."""
    if device == "cpu":
        tape = Tape()
        with tape:
            step()
        return tape.replay
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    return graph.replay
