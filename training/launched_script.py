"""What the scripts that many processes run together do alike: how they tell what is wrong, agree, wait and end."""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence

from train_config import UserError

FAILED, MISTAKE = 1, 2


class ScriptParser(argparse.ArgumentParser):
    """A command line whose mistakes are a [`UserError`], like all others."""

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> None:
        raise UserError(f"{message.rstrip('.')}; `{self.prog} --help` lists all options.")


def run_script(name: str, argv: list[str], run: Callable[[], int], after_signal: str) -> int:
    """Runs a script's work, and turns what it raises into one line and an exit status.

    Args:
        name (`str`): of the script's file.
        argv (`list[str]`): its command line; with `--debug` in it, errors are raised.
        run (`Callable`): the work.
        after_signal (`str`): what Ctrl-C and SIGTERM leave.

    Returns:
        `int`: the status: what `run` gave, 2 for a mistake of the user, 1 for any other error.
    """
    end_on_signals(name, after_signal)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _tell(f"{name}: warning: {one_line(message)}")
            warnings.simplefilter("ignore", FutureWarning)  # one library to another
            return run()
    except UserError as error:
        if "--debug" in argv:
            raise
        _tell(f"{name}: error: {error}")
        return MISTAKE
    except Exception as error:
        if "--debug" in argv:
            raise
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return FAILED


def end_on_signals(name: str, after_signal: str) -> None:
    """On SIGTERM and Ctrl-C the process ends at once, with 143 or 130, also while it computes or waits for others.

    A handler in Python would run when the current call of torch returns, and not at all while another process is waited
    for; a thread hears of the signal in time. For scripts whose files are in no state that the end could harm.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)

    def listen() -> None:
        while (number := os.read(heard, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
            pass
        if speaks_for_its_machine():
            os.write(2, f"\n{name}: stopped; {after_signal}\n".encode())
        os._exit(128 + number)

    threading.Thread(target=listen, daemon=True).start()
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def speaks_for_its_machine() -> bool:
    """Whether this process tells what all processes of a machine find alike."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _tell(line: str) -> None:
    if speaks_for_its_machine():
        print(line, file=sys.stderr, flush=True)


def one_line(error: Warning | Exception) -> str:
    """What a refusal says; of a failure that nobody foresaw also its kind, and how to see where it was."""
    text = " ".join(str(error).split())
    if text and isinstance(error, Warning | OSError | ValueError | RuntimeError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def join_processes(**options):
    """accelerate's state of this process, once all processes of the run are here.

    Without waiting, one that refuses what it was given ends while another still connects to it, and that one tells of the
    lost connection in place of the mistake.

    Args:
        options: of `accelerate.PartialState`.

    Raises:
        UserError: if accelerate does not join them.
        RuntimeError: if one of them has ended.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **options)
    if (started := os.environ.get("WORLD_SIZE") or "1") != "1" and state.num_processes == 1:
        remedy = (
            "put ACCELERATE_USE_CPU=true before the command" if state.device.type == "cpu" else "set LOCAL_RANK, too"
        )
        raise UserError(
            f"WORLD_SIZE is {started}, but accelerate joins no processes here, and each would do the whole work alone; "
            f"{remedy}, or start one process without WORLD_SIZE."
        )
    wait_for_all(state)
    return state


def check_same_everywhere(settings: dict) -> None:
    """Whether all processes have the same model, libraries and options: on several machines they may not.

    Raises:
        RuntimeError: naming what differs.
    """
    from accelerate.utils import gather_object

    for other in gather_object([settings]):
        if names := [name for name in settings if settings[name] != other[name]]:
            raise RuntimeError(f"the processes of this run differ in {', '.join(names)}; all must have the same.")


def from_main_process(state, make: Callable[[], object]):
    """What `make` returns in the main process, in all processes.

    Raises:
        UserError: in all processes, if it was raised there; RuntimeError for any other error.
    """
    from accelerate.utils import broadcast_object_list

    found, error = None, None
    if state.is_main_process:
        try:
            found = make()
        except UserError as problem:
            error = problem
        except Exception as problem:  # which the others must not wait for
            error = RuntimeError(one_line(problem))
            error.__cause__ = problem
    outcome = [found, error if error is None or isinstance(error, UserError) else RuntimeError(str(error))]
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise error or outcome[1]
    return outcome[0]


def main_process_first(state, make: Callable[[], object]):
    """What `make` returns, in each process; the main one makes it first, and so fills the caches for the others.

    Raises:
        UserError: in all processes, if it was raised in the main one.
    """
    made = []
    from_main_process(state, lambda: made.append(make()))
    return made[0] if made else make()


def in_turns(work: Sequence, state, bar, size: Callable[[object], int] = len) -> Iterator:
    """The items that this process takes, when all take them in turn: at any time they are about as far.

    Args:
        work (`Sequence`): all items, the same ones in all processes.
        state (`accelerate.PartialState`)
        bar (`tqdm`): told of the items of all processes, by their `size`.
    """
    for first in range(0, len(work), state.num_processes):
        together = work[first : first + state.num_processes]
        if state.process_index < len(together):
            yield together[state.process_index]
        bar.update(sum(map(size, together)))


def wait_for_all(state) -> None:
    """Waits until all processes are here.

    Raises:
        RuntimeError: if one of them has ended.
    """
    try:
        state.wait_for_everyone()
    except RuntimeError as error:
        raise RuntimeError("another process of this run has ended; the same command goes on.") from error
