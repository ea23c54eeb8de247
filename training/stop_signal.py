"""SIGTERM and Ctrl-C: the first asks the loop to end well, the second ends the process at once."""

import signal
from types import FrameType

STOPPED = 75  # exit status: the same command goes on (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # exit status: ended at once


class StopSignal:
    """Inside the `with` block, [`asked`] says at every step whether a signal has come, in all processes alike.

    The processes tell each other without a look at the device: each step starts an exchange of flags in the background,
    and the next one reads it. So a signal ends the step after the next at the latest; alone, a process answers at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}
        self._group = None
        self._exchange = None  # a flag on the CPU, and the work that fills it

    def __enter__(self) -> "StopSignal":
        import torch.distributed  # late: `train.py --help` needs the exit statuses alone

        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._group = torch.distributed.new_group(backend="gloo")
        return self

    def __exit__(self, *_) -> None:
        if self._exchange is not None:
            self._exchange[1].wait()
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()  # the second one does what it does everywhere

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether to stop now; to be called once a step by every process."""
        if self._group is None:
            return self.received is not None
        import torch

        stop = False
        if self._exchange is not None:
            flag, work = self._exchange
            work.wait()
            stop = bool(flag.item())
        flag = torch.tensor(float(self.received is not None))
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._exchange = (flag, work)
        return stop

    def asked_till_now(self) -> bool:
        """[`asked`] of all signals that have come, after the last step: waits for the other processes."""
        return self.asked() or self.asked()
