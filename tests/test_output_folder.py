"""The output folder: refused before anything is computed, and never at the cost of what lies there."""

import dataclasses

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
