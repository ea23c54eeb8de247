"""Checkpoints: whole after a kill, a full disk and damage, exact to the bit, and never at the cost of the one before."""

import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from checkpoints import CheckpointError, newest_checkpoint, save_checkpoint
from durable_files import PIECE


def content(step: int, size: int = 1000) -> tuple[dict, dict]:
    """Tensors and a state of which every number depends on the step."""
    numbers = torch.arange(size, dtype=torch.float32) + step
    tensors = {"model": {"a": numbers, "b": numbers.sqrt()[: size // 2]}, "optimizer": {"a": -numbers}}
    return tensors, {"step": step, "loss": [1 / (step + 1), math.pi * step]}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, *content(step), keep)


def assert_holds(checkpoint, step: int) -> None:
    tensors, state = content(step)
    assert checkpoint.step == step
    assert checkpoint.state == state
    for name, group in tensors.items():
        found = checkpoint.tensors(name)
        assert found.keys() == group.keys()
        assert all(torch.equal(found[key], group[key]) for key in group)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- What comes back ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back(tmp_path):
    folder = tmp_path / "checkpoints"
    assert newest_checkpoint(folder) is None
    assert save(folder, 500) == folder / "step_00000500"
    assert_holds(newest_checkpoint(folder), 500)
    assert names(folder / "step_00000500") == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip


def test_every_number_of_the_state_comes_back_to_the_bit(tmp_path):
    generator = random.Random(0)
    numbers = [generator.uniform(-1, 1) * 10 ** generator.randint(-300, 300) for _ in range(1000)]
    numbers += [5e-324, -0.0, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    state = {"numbers": numbers, "large": 2**80, "flags": [True, False, None], "text": 'ε "\n', "deep": {"a": [{}, []]}}
    folder = save_checkpoint(tmp_path, 1, {}, state, keep=1)
    found = newest_checkpoint(tmp_path).state
    assert [number.hex() for number in found.pop("numbers")] == [number.hex() for number in state.pop("numbers")]
    assert found == state

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    json.loads((folder / "state.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("value", [{1: 2}, torch.zeros(1), b"bytes", {1, 2}, {"__float__": "nan"}])
def test_a_state_that_would_not_come_back_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(TypeError, match=r"`state\['totals'\]\[1\]` is "):
        save_checkpoint(tmp_path, 1, {}, {"totals": [0, value]}, keep=1)
    assert names(tmp_path) == []


def test_tensors_of_every_kind_come_back_to_the_bit(tmp_path):
    tensors = {
        "nan": torch.tensor([math.nan, -0.0, math.inf]),
        "empty": torch.zeros(0, 3),
        "true": torch.tensor([True]),
    }
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.uint16):
        tensors[str(dtype)] = torch.arange(7).to(dtype)  # an odd number, so that what follows may be out of line
    tensors["scalar"] = torch.tensor(3, dtype=torch.int64)
    tensors["strided"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[:, 1:]
    tensors["large"] = torch.arange(PIECE // 4 + 11)  # two pieces and a bit
    save_checkpoint(tmp_path, 1, {"all": tensors, "none": {}}, {}, keep=1)
    checkpoint = newest_checkpoint(tmp_path)
    found = checkpoint.tensors("all")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert (
            found[name].numpy(force=True).tobytes() == tensor.contiguous().numpy().tobytes()
            if (tensor.dtype != torch.bfloat16)
            else torch.equal(found[name], tensor)
        )
    assert checkpoint.tensors("none") == {}
    with pytest.raises(KeyError, match="no tensors 'ema', only all, none"):
        checkpoint.tensors("ema")


def test_what_was_read_outlives_the_checkpoint(tmp_path):
    folder = save(tmp_path, 1)
    tensors = newest_checkpoint(tmp_path).tensors("model")
    for path in folder.glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))  # in place: a mapping would show it
    assert torch.equal(tensors["a"], content(1)[0]["model"]["a"])


def test_types_that_no_file_holds_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"'x' is a Tensor of torch.complex128"):
        save_checkpoint(tmp_path, 1, {"model": {"x": torch.zeros(2, dtype=torch.complex128)}}, {}, keep=1)
    assert names(tmp_path) == []


# --- Which ones stay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(tmp_path, keep):
    for step in range(5):
        save(tmp_path, step, keep)
        assert names(tmp_path) == [f"step_{i:08d}" for i in range(max(0, step - keep + 1), step + 1)]


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (1, 0)])
def test_arguments_that_cannot_be(tmp_path, step, keep):
    with pytest.raises(ValueError, match=f"`step` is {step} and `keep` is {keep}"):
        save_checkpoint(tmp_path, step, {}, {}, keep)


def test_one_that_lost_a_part_is_not_counted(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step_00000002" / "state.json").unlink()
    save(tmp_path, 3)
    assert names(tmp_path) == ["step_00000001", "step_00000002", "step_00000003"]
    save(tmp_path, 4)
    assert names(tmp_path) == ["step_00000003", "step_00000004"]


def test_the_same_step_again_replaces_it(tmp_path):
    for number in range(3):
        save_checkpoint(tmp_path, 7, {}, {"number": number}, keep=2)
        assert names(tmp_path) == ["step_00000007"]
    assert newest_checkpoint(tmp_path).state == {"number": 2}


def test_leftovers_of_killed_processes_go_and_what_was_being_replaced_comes_back(tmp_path, capsys):
    save(tmp_path, 1)
    for name in (".writing-step_00000002-ab", ".deleted-cd"):
        shutil.copytree(tmp_path / "step_00000001", tmp_path / name)
    (tmp_path / "step_00000001").rename(tmp_path / ".replaced-step_00000001")  # as between the two renamings
    assert_holds(newest_checkpoint(tmp_path), 1)
    save(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]
    shutil.copytree(tmp_path / "step_00000002", tmp_path / ".replaced-step_00000002")  # as after both
    save(tmp_path, 3)
    assert names(tmp_path) == ["step_00000002", "step_00000003"]
    assert capsys.readouterr().err == ""


# --- Damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a file cut off": (
        lambda f: os.truncate(f / "model.safetensors", 100),
        r"model\.safetensors has 100 bytes instead of 6,\d+",
    ),
    "one bit of a tensor": (
        lambda f: flip(f / "optimizer.safetensors", 2000),
        r"optimizer\.safetensors has another SHA-256",
    ),
    "one bit of the state": (lambda f: flip(f / "state.json", 9), r"state\.json has another SHA-256"),
    "a file gone": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json, which is written last, is missing"),
    "half a manifest": (lambda f: os.truncate(f / "manifest.json", 50), r"manifest\.json is no manifest"),
    "an empty manifest": (lambda f: (f / "manifest.json").write_text("{}"), r"manifest\.json is no manifest"),
    "a list for a manifest": (lambda f: (f / "manifest.json").write_text("[]"), r"manifest\.json is no manifest"),
    "a folder for a file": (
        lambda f: ((f / "manifest.json").unlink(), (f / "manifest.json").mkdir()),
        r"manifest\.json cannot be read: Is a directory",
    ),
    "another step": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace('"step": 2', '"step": 3')),
        r"manifest\.json is of step 3",
    ),
    "a later format": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace('"format": 1', '"format": 2')),
        r"manifest\.json has the format 2 instead of 1",
    ),
    "nothing in it": (lambda f: (shutil.rmtree(f), f.mkdir()), r"manifest\.json, which is written last, is missing"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, capsys, damage):
    harm, message = DAMAGES[damage]
    save(tmp_path, 1)
    harm(save(tmp_path, 2))
    assert_holds(newest_checkpoint(tmp_path), 1)
    warning = capsys.readouterr().err
    assert re.search(message, warning), warning
    assert str(tmp_path / "step_00000002") in warning
    assert warning.count("\n") == 1


def test_every_bit_counts(tmp_path, capsys):
    """One flipped bit anywhere in any file, at many places: never read as if nothing were."""
    folder = save_checkpoint(tmp_path, 1, {"model": {"a": torch.arange(4.0)}}, {"x": 1.5}, keep=1)
    state = newest_checkpoint(tmp_path).state
    for path in sorted(folder.iterdir()):
        for position in range(0, path.stat().st_size, 7):
            flip(path, position)
            found = newest_checkpoint(tmp_path)
            # A manifest may lose a line break, or have another letter in a name that JSON does not need.
            assert found is None or (path.name == "manifest.json" and found.state == state)
            flip(path, position)
    assert newest_checkpoint(tmp_path).state == state
    capsys.readouterr()


def test_all_damaged(tmp_path, capsys):
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").write_text("{}")
    assert newest_checkpoint(tmp_path) is None
    assert capsys.readouterr().err.count("is passed over") == 2


def test_other_names_are_no_checkpoints(tmp_path, capsys):
    save(tmp_path, 5)
    for name in ("step_9", "step_000000000009", "step_0000000x", "other"):
        shutil.copytree(tmp_path / "step_00000005", tmp_path / name)
    (tmp_path / "step_00000008").touch()
    assert newest_checkpoint(tmp_path).step == 5
    assert capsys.readouterr().err == ""


# --- A full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB; `None` where this user may not mount one, and a limit on the size of files has to do."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=False, capture_output=True)
    yield folder if mount.returncode == 0 else None
    if mount.returncode == 0:
        subprocess.run(["umount", folder], check=True)


def assert_told_and_nothing_lost(folder: Path, error: CheckpointError, reason: str) -> None:
    message = str(error)
    assert re.search(rf"the checkpoint of step 2 cannot be written to {folder}: {reason}", message), message
    assert re.search(r"It takes 4\.0 MB, and [\d.,]+ MB are free\.", message), message
    assert f"The last one, {folder / 'step_00000001'}, is whole." in message
    assert isinstance(error.__cause__, OSError)
    assert names(folder) == ["step_00000001"]
    assert_holds(newest_checkpoint(folder), 1)


def test_a_full_disk(small_disk, capsys):
    if small_disk is None:
        pytest.skip("this user may not mount a file system; test_a_limit_on_files shows the same")
    folder = small_disk / "checkpoints"
    save(folder, 1)
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(folder, 2, {"model": {"a": torch.zeros(1_000_000)}}, {}, keep=1)
    assert_told_and_nothing_lost(folder, error.value, "No space left on device")
    free = float(re.search(r"and ([\d.]+) MB are free", str(error.value))[1])
    assert free > 1.8  # what is free without the attempt's own file
    assert shutil.disk_usage(small_disk).free > 1_900_000
    save(folder, 3)
    assert_holds(newest_checkpoint(folder), 3)
    assert capsys.readouterr().err == ""


def test_a_full_disk_from_the_first_checkpoint_on(small_disk):
    if small_disk is None:
        pytest.skip("this user may not mount a file system")
    with pytest.raises(CheckpointError, match=r"There is no earlier one\. Make room and run the same command again"):
        save_checkpoint(small_disk / "checkpoints", 1, {"model": {"a": torch.zeros(1_000_000)}}, {}, keep=1)


def test_a_limit_on_files(tmp_path):
    """`ulimit -f`: refused in the middle of a file, as by a quota."""
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(CheckpointError) as error:
            save_checkpoint(folder, 2, {"model": {"a": torch.zeros(1_000_000)}}, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_told_and_nothing_lost(folder, error.value, "File too large")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*checkpoints: File exists"):
        save(tmp_path / "checkpoints", 1)


# --- Kill -9 -----------------------------------------------------------------------------------------------------------


def save_forever(folder: Path, first: int, keep: int, pipe: int) -> None:
    """Each step is saved twice, so that checkpoints are also replaced. Says what it has saved."""
    for step in range(first, 10**6):
        for _ in range(2):
            save(folder, step, keep)
        os.write(pipe, b"%d\n" % step)


def start_saving(folder: Path, first: int, keep: int):
    """A process that saves in a loop. A copy of this one: starting Python anew for each kill would take most of the time."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where threads are about
        process = os.fork()
    if process == 0:
        try:
            save_forever(folder, first, keep, writing)
        finally:
            os._exit(1)
    os.close(writing)
    return process, os.fdopen(reading)


def test_killed_at_any_moment_the_newest_is_whole(tmp_path, capsys):
    """A process saves in a loop and is killed; what it had said to have saved is there, or something later, exactly."""
    generator, newest, folder = random.Random(0), -1, tmp_path / "checkpoints"
    left = set()
    for round_ in range(25):
        process, pipe = start_saving(folder, newest + 1, keep=1 + round_ % 2)
        said = [int(pipe.readline()) for _ in range(generator.randint(1, 3))]
        spin = generator.randrange(200_000)
        while spin:  # up to some milliseconds, which is what a saving takes: no moment of it is spared
            spin -= 1
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        said += [int(line) for line in pipe.read().split()]
        pipe.close()
        found = newest_checkpoint(folder)
        assert found.step >= said[-1]
        assert_holds(found, found.step)
        left |= {path.name.split("-")[0] for path in folder.iterdir() if path.name.startswith(".")}
        newest = found.step
    assert capsys.readouterr().err == ""  # what a kill leaves has no checkpoint's name, and is not warned of
    assert ".writing" in left  # kills did hit the writing


# --- The power fails ---------------------------------------------------------------------------------------------------


def test_everything_is_synced_before_it_is_named_and_nothing_deleted_before(tmp_path):
    """The order of the system calls, as the operating system sees them: the promise after a power cut."""
    calls = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "rmdir", "unlink")}

    def describe(target) -> str:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        return re.sub(r"-step_\d+-[0-9a-f]+|-[0-9a-f]{16}", "", os.path.relpath(path, tmp_path))

    save(tmp_path, 1, keep=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda f: (calls.append(f"sync {describe(f)}"), real["fsync"](f))[1])
        patch.setattr(
            os, "rename", lambda a, b: (calls.append(f"{describe(a)} → {describe(b)}"), real["rename"](a, b))[1]
        )
        save(tmp_path, 2, keep=1)
        once = calls.copy()
        calls.clear()
        save(tmp_path, 2, keep=1)  # in the place of the first one, which is found until the new one is there
    writing = [
        "sync .writing/model.safetensors",
        "sync .writing/optimizer.safetensors",
        "sync .writing/state.json",
        "sync .writing",
        "sync .writing/manifest.json",
        "sync .writing",
    ]
    placing = [".writing → step_00000002", "sync ."]
    assert once == [*writing, *placing, "sync ..", "step_00000001 → .deleted"]
    replaced = ".replaced-step_00000002"
    assert calls == [*writing, f"step_00000002 → {replaced}", *placing, f"{replaced} → .deleted", "sync .."]


def test_an_interrupt_leaves_nothing(tmp_path):
    """The second Ctrl-C comes while a checkpoint is written."""

    class Interrupting(dict):
        def items(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 1, Interrupting(), {}, keep=1)
    assert names(tmp_path) == []


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    save(tmp_path, 3)
    assert_holds(newest_checkpoint(tmp_path), 3)
