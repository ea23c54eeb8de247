"""What the scripts that many processes run together do alike."""

import pytest

# Says when a process begins to wait for the others, and does it then.
WAITS = """
import sys
from accelerate import PartialState
waits = PartialState.wait_for_everyone
def saying(self):
    print("waits for all", file=sys.stderr, flush=True)
    waits(self)
PartialState.wait_for_everyone = saying
"""


@pytest.mark.parametrize(
    ("script", "mistake", "said"),
    [
        ("train", ["--batch_size", "7"], "`batch_size` is 7"),
        ("sample", ["--num_images", "4", "--model", "no/where/at/all"], "no/where/at/all"),
        ("evaluate", ["--model", "no/where/at/all"], "no/where/at/all"),
    ],
)
def test_a_mistake_is_told_once_all_are_connected(trains, script, mistake, said, tmp_path):
    """One that ended before would break the connection of another, which then told of that alone."""
    run = trains.start(*mistake, "--output_dir", tmp_path / "run", script=script, processes=2, patch=WAITS)
    assert said in run.wait().error(f"{script}.py")
    for rank in range(2):
        assert "waits for all\n" in (run.output(rank) / "stderr").read_text()
