"""Work that a thread does some steps before it is asked for."""

import queue
import threading
import weakref
from collections.abc import Callable

import torch

STEPS_AHEAD = 2
# How long the end of the process waits for a thread that reads from the network.
LONGEST_WAIT_SECONDS = 10.0


class ReadAhead:
    """Results of `work(0)`, `work(1)`, …, one after the other, from a thread that is `STEPS_AHEAD` of whoever asks.

    What goes wrong in the thread is raised where its result is asked for. The thread ends with [`close`], when this object
    is no longer used, and when the process ends; `work` must not hold this object.
    """

    def __init__(self, work: Callable[[int], object]):
        self._done, self._error = queue.SimpleQueue(), None
        self._free, stopped = threading.Semaphore(STEPS_AHEAD), threading.Event()
        thread = threading.Thread(
            target=_work_ahead, args=(work, self._done, self._free, stopped), name="read ahead", daemon=True
        )
        thread.start()
        # Also where nobody closes it: an error elsewhere must not keep the process from ending.
        self.close = weakref.finalize(self, _end, stopped, self._free, thread)

    def next(self):
        """The next result."""
        if self._error is None:
            result, self._error = self._done.get()
        if self._error is not None:
            raise self._error
        self._free.release()
        return result


def _work_ahead(
    work: Callable[[int], object], done: queue.SimpleQueue, free: threading.Semaphore, stopped: threading.Event
) -> None:
    # Its operations are small. A second team of OpenMP threads, on as many cores, would slow the network's: waiting threads
    # then go to sleep at once, and are woken at each layer.
    torch.set_num_threads(1)  # of this thread alone
    number = 0
    while True:
        free.acquire()
        if stopped.is_set():
            return
        try:
            done.put((work(number), None))
        except BaseException as error:  # whatever it is, it is raised again in `next`
            done.put((None, error))
            return
        number += 1


def _end(stopped: threading.Event, free: threading.Semaphore, thread: threading.Thread) -> None:
    stopped.set()
    free.release()
    thread.join(LONGEST_WAIT_SECONDS)
