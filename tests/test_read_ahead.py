"""Work that a thread does ahead: its results in order, its errors, and its end."""

import gc
import threading

import pytest
from conftest import run_python
from read_ahead import STEPS_AHEAD, ReadAhead


def test_results_come_in_order_and_no_more_is_done_than_some_steps_ahead():
    done, enough = [], threading.Event()

    def work(number: int) -> int:
        done.append(number)
        if number == 9 + STEPS_AHEAD:
            enough.set()
        return number * number

    ahead = ReadAhead(work)
    assert [ahead.next() for _ in range(10)] == [n * n for n in range(10)]
    assert enough.wait(60)
    ahead.close()
    assert done == list(range(10 + STEPS_AHEAD))


@pytest.mark.parametrize("error", [ValueError, MemoryError, SystemExit])
def test_an_error_is_raised_after_the_results_before_it_and_again(error):
    def work(number: int) -> int:
        if number == 3:
            raise error("no more")
        return number

    ahead = ReadAhead(work)
    assert [ahead.next() for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(error, match="no more"):
            ahead.next()
    ahead.close()


def threads() -> int:
    return sum(thread.name == "read ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("closed", [True, False])
def test_the_thread_ends(closed):
    before = threads()
    ahead = ReadAhead(lambda number: number)
    ahead.next()
    assert threads() == before + 1
    if closed:
        ahead.close()
        ahead.close()
    else:
        del ahead
        gc.collect()
    assert threads() == before


@pytest.mark.parametrize(
    ("end", "status"), [("raise SystemExit(3)", 3), ("raise RuntimeError('elsewhere')", 1), ("", 0)]
)
def test_the_process_ends_whatever_happens_elsewhere(end, status):
    """With results that nobody took, a place for no more, and work in progress."""
    script = f"""
import sys, threading
sys.path.insert(0, "training")
from read_ahead import ReadAhead
full, begun = ReadAhead(lambda number: number), threading.Event()
def work(number):
    begun.set()
    return sum(range(10**7))
busy = ReadAhead(work)
begun.wait()
{end}
"""
    result = run_python("-c", script)
    assert result.returncode == status, result.stderr
    assert ("elsewhere" in result.stderr) == ("elsewhere" in end)
    assert "Exception ignored" not in result.stderr
