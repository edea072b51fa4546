"""Ctrl-C and SIGTERM, at a point that suits the run."""

import signal
import threading
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was stopped by a signal after a checkpoint was written. ``signum``: which one."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class SignalWatch:
    """A context in which the first SIGINT or SIGTERM only sets ``signum``; a second one acts as it did outside.

    Signals reach the main thread only; in another one, ``signum`` stays 0.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._outside: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._outside = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._outside.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.__exit__()
