"""diffusers' `interrupt`, for a pipeline that several threads call at once.

This file is copied beside every model that is published: it imports the standard library only.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(eq=False)
class _Call:
    thread: int
    interrupted: bool = False


class RunningCalls:
    """The calls of a pipeline that are under way, and which of them are to stop."""

    def __init__(self):
        self._calls: list[_Call] = []

    @contextlib.contextmanager
    def one_more(self) -> Iterator[_Call]:
        """A call of this thread, while it runs."""
        call = _Call(threading.get_ident())
        self._calls.append(call)
        try:
            yield call
        finally:
            self._calls.remove(call)

    @property
    def interrupted(self) -> bool:
        """Whether this thread's call is to stop; of a thread without one, whether any is."""
        return any(call.interrupted for call in self._mine())

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        for call in self._mine():
            call.interrupted = bool(value)

    def _mine(self) -> list[_Call]:
        """The innermost call of this thread; of a thread without one, all."""
        calls = list(self._calls)
        return [call for call in calls if call.thread == threading.get_ident()][-1:] or calls
