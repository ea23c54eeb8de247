"""The output folder: refused before anything is computed, and never at the cost of what lies there."""

import dataclasses
import os
import tempfile

import pytest
from conftest import make_pipeline
from output_folder import check_output, claim_output, save_model
from train_config import TrainConfig, UserError, parse_config

from ddpm_hub import DDPMHubPipeline


def config(folder) -> TrainConfig:
    return dataclasses.replace(TrainConfig(), output_dir=str(folder))


def test_checking_creates_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    assert check_output(config(folder)) == folder
    assert list(tmp_path.iterdir()) == []


def test_the_resolved_configuration_is_written(tmp_path):
    folder = tmp_path / "run"
    claim_output(folder, config(folder))
    assert parse_config(["--config", str(folder / "config.yaml")]) == config(folder)


def test_an_earlier_run_is_kept(tmp_path, capsys):
    folder = tmp_path / "run"
    for content in ("first", "second", "third"):
        check_output(config(folder))
        claim_output(folder, config(folder))
        (folder / "weights").write_text(content)
    assert "kept" in capsys.readouterr().out
    kept = {path.name: (path / "weights").read_text() for path in tmp_path.iterdir()}
    assert kept == {"run.1": "first", "run.2": "second", "run": "third"}


@pytest.mark.parametrize("content", ["model: resnet\n", "seed: 1\nlr: 2\n", "[1, 2]", "", "a: [", "{}"])
def test_another_programs_config_is_no_earlier_run(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    (tmp_path / "weights").touch()
    with pytest.raises(UserError, match="holds files of something else"):
        check_output(config(tmp_path))


def make_run(folder):
    claim_output(folder, config(folder))
    return folder


def test_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "run"))
    claim_output(check_output(config(".")), config("."))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]


def test_a_link_to_an_earlier_run_stays(tmp_path):
    real, link = make_run(tmp_path / "real"), tmp_path / "link"
    link.symlink_to(real)
    claim_output(check_output(config(link)), config(link))
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
        with pytest.raises(UserError, match="cannot be made: File name too long"):
            claim_output(folder, config(folder))
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
        check_output(config(folder))


def test_an_earlier_run_in_a_mount_point_is_refused(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == folder)
    with pytest.raises(UserError, match=r"`output_dir` is .*a mount point.*choose a folder in it"):
        check_output(config(folder))


def test_a_move_that_fails_is_told_and_loses_nothing(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")

    def fail(self, target):
        raise OSError(18, "Invalid cross-device link")  # of a folder in the lower layer of a container

    monkeypatch.setattr("pathlib.Path.rename", fail)
    with pytest.raises(UserError, match="cannot be made: Invalid cross-device link"):
        claim_output(folder, config(folder))
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
    claim_output(tmp_path / "run", config(tmp_path / "run"))
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
