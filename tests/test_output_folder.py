"""The output folder: refused before anything is computed, and never at the cost of what lies there."""

import dataclasses
import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import tempfile
import warnings

import pytest
import torch
import yaml
from config_parser import parse_config
from conftest import make_pipeline
from output_folder import (
    check_movable,
    check_output,
    claim_output,
    config_mark,
    hold_output,
    is_filled,
    save_model,
    write_whole,
)
from train_config import TrainConfig, UserError
from train_runs import claim

from ddpm_hub import DDPMHubPipeline


def config(folder) -> TrainConfig:
    return dataclasses.replace(TrainConfig(), output_dir=str(folder))


def test_checking_creates_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    assert check_output(config(folder)) == folder
    assert list(tmp_path.iterdir()) == []


def test_the_resolved_configuration_is_written(tmp_path):
    folder = tmp_path / "run"
    claim(folder, config(folder))
    assert parse_config(["--config", str(folder / "config.yaml")]) == config(folder)


def test_an_earlier_run_is_kept(tmp_path, capsys):
    folder = tmp_path / "run"
    for content in ("first", "second", "third"):
        check_output(config(folder))
        claim(folder, config(folder))
        (folder / "weights").write_text(content)
    assert "kept" in capsys.readouterr().out
    kept = {path.name: (path / "weights").read_text() for path in tmp_path.iterdir()}
    assert kept == {"run.1": "first", "run.2": "second", "run": "third"}


def test_a_run_that_goes_on_stays_where_it_is(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "weights").write_text("first")
    changed = dataclasses.replace(config(folder), sample_every=7)
    claim(folder, changed, in_place=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (folder / "weights").read_text() == "first"
    assert parse_config(["--config", str(folder / "config.yaml")]) == changed
    assert capsys.readouterr().out == ""


def test_a_run_of_another_version_is_an_earlier_run(tmp_path):
    """The first version had `ema_decay`, and half of today's keys."""
    folder = make_run(tmp_path / "run")
    content = yaml.safe_load((folder / "config.yaml").read_text())
    for key in ("ema_decays", "ema_stds", "streaming", "license", "eta"):
        del content[key]
    (folder / "config.yaml").write_text(yaml.safe_dump(content | {"ema_decay": 0.9999}))
    claim(check_output(config(folder)), config(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]


def test_a_run_that_was_killed_while_it_wrote_its_first_file_has_left_nothing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml.partial").write_text("dataset_na")
    assert not is_filled(check_output(config(folder)))
    claim(folder, config(folder))
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("content", ["model: resnet\n", "seed: 1\nlr: 2\n", "[1, 2]", "", "a: [", "{}"])
def test_another_programs_config_is_no_earlier_run(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "weights").touch()
    with pytest.raises(UserError, match="holds files of something else"):
        check_output(config(tmp_path))


def make_run(folder):
    claim(folder, config(folder))
    return folder


def test_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "run"))
    claim(check_output(config(".")), config("."))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]


def test_a_link_to_an_earlier_run_stays(tmp_path):
    real, link = make_run(tmp_path / "real"), tmp_path / "link"
    link.symlink_to(real)
    claim(check_output(config(link)), config(link))
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real", "real.1"]


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, below):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"`output_dir` is .*leads nowhere; make the folder '.*unmounted'"):
        check_output(config(tmp_path / "link" / below))


@pytest.mark.parametrize("name", ["x" * 300, "new/" + "x" * 300, "~no-such-user/run", "a\0b"])
def test_a_name_that_cannot_be_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"`output_dir` is .*cannot be used: .*Choose another folder"):
        check_output(config(name))


def test_an_earlier_run_whose_name_leaves_no_room_for_a_number(tmp_path):
    folder = make_run(tmp_path / ("x" * 255))
    try:
        assert check_output(config(folder))
        with pytest.raises(UserError, match="cannot be written: File name too long"):
            claim(folder, config(folder))
    finally:
        assert (folder / "config.yaml").exists()


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_output(config("~/run")) == tmp_path / "run"


def test_an_earlier_run_that_cannot_be_moved_is_refused(tmp_path, monkeypatch):
    """Permissions do not bind root, who may run this: the answer of the operating system is put in its place."""
    folder, real = make_run(tmp_path / "run"), tempfile.TemporaryFile

    def refuse_parent(dir):  # noqa: A002
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied")
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse_parent)
    with pytest.raises(UserError, match=f"'{tmp_path}' cannot be written: Permission denied"):
        check_movable(check_output(config(folder)), config(folder))


def test_an_earlier_run_in_a_mount_point_is_refused(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == folder)
    with pytest.raises(UserError, match=r"`output_dir` is .*a mount point.*choose a folder in it"):
        check_movable(check_output(config(folder)), config(folder))


def test_a_move_that_fails_is_told_and_loses_nothing(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")

    def fail(self, target):
        raise OSError(18, "Invalid cross-device link")  # of a folder in the lower layer of a container

    monkeypatch.setattr("pathlib.Path.rename", fail)
    with pytest.raises(UserError, match="cannot be written: Invalid cross-device link"):
        claim(folder, config(folder))
    assert (folder / "config.yaml").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"`output_dir` is .*holds files of something else"):
        check_output(config(tmp_path))


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_way_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"`output_dir` is .*is a file"):
        check_output(config(tmp_path / "file" / below))


def test_a_folder_that_cannot_be_written_is_refused():
    """/proc accepts no files, from root either."""
    with pytest.raises(UserError, match="`output_dir` is '/proc/run', but '/proc' cannot be written"):
        check_output(config("/proc/run"))


def test_saving_replaces_a_model_and_leaves_nothing_else(tmp_path):
    claim(tmp_path / "run", config(tmp_path / "run"))
    for _ in range(2):
        save_model(make_pipeline(), tmp_path / "run")
    assert DDPMHubPipeline.from_pretrained(tmp_path / "run").num_classes == 3
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_a_save_that_fails_leaves_the_model_that_was_there(tmp_path, monkeypatch):
    pipeline = make_pipeline()
    save_model(pipeline, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    class FullDiskError(OSError):
        pass

    def fail(*args, **kwargs):
        raise FullDiskError

    monkeypatch.setattr(pipeline.scheduler, "save_pretrained", fail)
    with pytest.raises(FullDiskError):
        save_model(pipeline, tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_full_disk_leaves_the_model_that_was_there(tmp_path):
    """A file system with a model, filled up but for 16 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        save_model(make_pipeline(), folder)
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        room = shutil.disk_usage(folder).free - 16384
        (folder / "filler").write_bytes(bytes(room))
        with pytest.raises(OSError, match="No space left on device"):
            save_model(make_pipeline(), folder)
        (folder / "filler").unlink()
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
        assert not any(path.name.startswith(".") for path in folder.iterdir())
        with pytest.raises(OSError, match="No space left on device") as error:
            write_whole(folder / "text", "x" * 5_000_000)
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(folder / "text.partial"))
        assert not list(folder.glob("text*"))
    finally:
        subprocess.run(["umount", folder], check=True)


def test_killed_at_any_moment_the_model_loads(tmp_path):
    """A process saves one model after the other and is killed; what is there loads, and the next saving tidies up."""
    generator, pipeline = random.Random(0), make_pipeline()
    save_model(pipeline, tmp_path)
    for _ in range(6):
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where threads are about
            process = os.fork()
        if process == 0:
            try:
                while True:
                    with torch.no_grad():
                        next(pipeline.unet.parameters()).add_(1)
                    save_model(pipeline, tmp_path)
                    os.write(writing, b"saved\n")
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            pipe.readline()
            spin = generator.randrange(1_000_000)
            while spin:
                spin -= 1
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        assert DDPMHubPipeline.from_pretrained(tmp_path).num_classes == 3
    save_model(pipeline, tmp_path)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_a_model_is_synced_before_it_takes_its_place(tmp_path, monkeypatch):
    """The order of the system calls: after a power cut, no file has a name and not its content; the index is the last."""
    calls, fsync, replace = [], os.fsync, os.replace

    def note(what: str, path) -> None:
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        calls.append((what, os.path.relpath(path, tmp_path)))

    monkeypatch.setattr(os, "fsync", lambda f: (note("sync", f), fsync(f))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (note("replace", b), replace(a, b))[1])
    save_model(make_pipeline(), tmp_path)
    # The package writes files into the fresh folder by renaming, too.
    placed = [path for what, path in calls if what == "replace" and not path.startswith(".saving-")]
    first, index = calls.index(("replace", placed[0])), calls.index(("replace", "model_index.json"))
    synced = {
        path.split(os.sep, 1)[1] for what, path in calls[:first] if what == "sync" and path.startswith(".saving-")
    }
    assert synced == set(placed)
    assert "unet/diffusion_pytorch_model.safetensors" in placed
    assert placed[-1] == "model_index.json"
    assert {path for what, path in calls[first:index] if what == "sync"} >= {".", "unet", "scheduler"}
    assert calls[-1] == ("sync", ".")


def test_two_runs_do_not_hold_one_folder(tmp_path):
    folder = make_run(tmp_path / "run")
    refused = pytest.raises(UserError, match="where another process is training")
    with hold_output(folder, config(folder)), refused, hold_output(folder, config(folder)):
        pass
    for in_place in (True, False):
        refused = pytest.raises(UserError, match="where another process is training")
        with hold_output(folder, config(folder)), refused:
            claim(folder, config(folder), in_place)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with hold_output(folder, config(folder)):
        pass


def test_a_run_that_began_and_ended_meanwhile_is_not_written_over(tmp_path):
    """Its folder was empty, or held what it would go on with, when this one looked; then it loaded its data for long."""
    folder = tmp_path / "run"
    for _ in range(2):
        mark = config_mark(folder)
        claim(folder, config(folder), in_place=True)
        (folder / "weights").write_text("of the other")
        late = claim_output(folder, dataclasses.replace(config(folder), seed=1), in_place=True, mark=mark)
        with pytest.raises(UserError, match="where another run was at work while this one loaded its data"), late:
            pass
        assert (folder / "weights").read_text() == "of the other"
        assert parse_config(["--config", str(folder / "config.yaml")]) == config(folder)


def test_a_folder_that_was_moved_aside_before_it_was_locked_is_not_held(tmp_path, monkeypatch):
    """Two runs that come at once: one opens the folder, the other moves it aside and makes a new one in its place."""
    folder, flock = make_run(tmp_path / "run"), fcntl.flock

    def locked_late(descriptor: int, kind: int) -> None:
        monkeypatch.undo()
        claim(folder, config(folder))
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    with pytest.raises(UserError, match="where another process is training"), hold_output(folder, config(folder)):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]
