"""Two runs that come to one folder at once: one of them has it, and nothing is lost, at whatever moment the other comes."""

import dataclasses
import itertools
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from output_folder import CONFIG_FILE, claim_output, config_mark
from train_config import TrainConfig, UserError

CLAIMS = ("goes on", "begins anew")


class Claim:
    """A run that looks at the folder when it is made, loads its data, and then takes the folder."""

    def __init__(self, folder: Path, seed: int, kind: str):
        self.folder, self.config = folder, dataclasses.replace(TrainConfig(), output_dir=str(folder), seed=seed)
        self.text = self.config.to_yaml()
        self.in_place = kind == "goes on" or not folder.exists()
        self.mark, self.held, self.is_mine = config_mark(folder), ExitStack(), False

    def take(self) -> None:
        try:
            self.held.enter_context(claim_output(self.folder, self.config, self.in_place, self.mark))
        except UserError as error:
            if "another process is training" in str(error) or "another run was at work" in str(error):
                return
            raise
        self.is_mine = True
        (self.folder / "weights").write_text(self.text)


def take_at(claim: Claim, moment: int, other: Claim, ends: bool) -> int:
    """A claim, at whose `moment`-th call of the system the other one comes; how many there were."""
    calls = 0

    def count(frame, event: str, argument) -> None:
        nonlocal calls
        if event == "c_call" and argument.__module__ in ("posix", "fcntl"):
            calls += 1
            if calls == moment:
                other.take()
                if ends:
                    other.held.close()

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        claim.take()
    finally:
        sys.setprofile(before)
    return calls


def folders_of(claims: list[Claim]) -> dict[str, Path]:
    """Where the weights of each run lie."""
    folder = claims[0].folder
    found = {path.read_text(): path.parent for path in folder.parent.glob(f"{folder.name}*/weights")}
    for text, place in found.items():
        assert (place / CONFIG_FILE).read_text() == text  # no run's weights lie beside another's configuration
    return found


def try_moment(folder: Path, moment: int, kinds: tuple[str, str], is_new: bool, ends: bool) -> bool:
    """Whether the claim of the first kind was still at work at that moment, in which the other one came."""
    earlier = Claim(folder, 9, "goes on")
    if not is_new:
        earlier.take()
        earlier.held.close()
    claims = [Claim(folder, seed, kind) for seed, kind in enumerate(kinds)]
    calls = take_at(claims[0], moment, claims[1], ends)
    winners = [claim for claim in claims if claim.is_mine]
    assert len(winners) == 1 or (ends and len(winners) == 2)
    kept = winners if is_new or any(winner.in_place for winner in winners) else [*winners, earlier]
    assert folders_of(claims).keys() >= {claim.text for claim in kept}
    for claim in claims:
        claim.held.close()
    return calls >= moment


def test_each_moment_of_a_claim(tmp_path, campaign):
    times, pace = 0, campaign.times(10, 1)
    for kinds in itertools.product(CLAIMS, CLAIMS):
        for is_new, ends in itertools.product((False, True), (False, True)):
            moment = campaign.chance().randrange(1, 1 + pace)
            while try_moment(tmp_path / str(times) / "run", moment, kinds, is_new, ends):
                times, moment = times + 1, moment + pace
            shutil.rmtree(tmp_path / str(times))
    what = "one has it, the other is refused; no run's files are lost, or lie beside another's configuration"
    campaign.held("Training", "a second run at each moment in which a first takes the folder", times, what)
