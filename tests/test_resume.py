"""How a run starts, from what lies in its output folder: begun, gone on with, done, or refused."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import save_checkpoint
from config_parser import parse_config
from conftest import REPOSITORY
from output_folder import check_output, hold_output
from resume import FREE_KEYS, check_data, check_precision, find_run, missing, note_done
from train_config import TrainConfig, UserError
from train_runs import claim


@dataclasses.dataclass
class Data:
    """The two facts that are compared."""

    num_images: int | None
    fingerprint: str


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return dataclasses.replace(
        TrainConfig(),
        output_dir=str(tmp_path / "run"),
        max_train_steps=1000,
        lr_schedule="constant",
        fidelity_samples=20,
    )


def start(config: TrainConfig, *steps: int, finished: bool = False) -> Path:
    """The folder of a run of this configuration with these checkpoints."""
    folder = check_output(config)
    claim(folder, config, find_run(config, folder).in_place)
    for step in steps:
        save_checkpoint(
            folder / "checkpoints",
            step,
            {"model": {"a": torch.ones(1)}},
            {"step": step, "mixed_precision": "bf16"},
            keep=2,
        )
    if finished:
        (folder / "model_index.json").write_text("{}")
        (folder / "metrics.json").write_text(json.dumps({"training": {"steps": config.max_train_steps}}))
    return folder


def find(config: TrainConfig, **changes):
    changed = dataclasses.replace(config, **changes)
    return find_run(changed, check_output(changed))


def tree(folder: Path) -> dict:
    return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in (folder, *folder.rglob("*"))}


# --- Which way ---------------------------------------------------------------------------------------------------------


def test_nothing_there(config):
    found = find(config)
    assert (found.kind, found.checkpoint, found.in_place, found.missing) == ("fresh", None, True, ())


def test_an_unfinished_run_goes_on_from_its_newest_checkpoint(config):
    start(config, 100, 200)
    found = find(config)
    assert (found.kind, found.checkpoint.step, found.in_place) == ("resume", 200, True)


def test_a_damaged_checkpoint_is_not_gone_on_from(config, capsys):
    (start(config, 100, 200) / "checkpoints" / "step_00000200" / "state.json").unlink()
    assert find(config).checkpoint.step == 100
    assert "step_00000200 is passed over: state.json is missing" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_begins_again_in_its_folder(config):
    folder = start(config)
    found = find(config)
    assert (found.kind, found.in_place) == ("fresh", True)
    claim(folder, config, found.in_place)
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_a_run_without_a_checkpoint_but_with_figures_is_kept(config):
    """Of a run that was stopped, or of a model that was exported with its config.yaml."""
    folder = start(config)
    (folder / "metrics.json").write_text('{"training": {"steps": 7}}')
    assert (find(config).kind, find(config).in_place) == ("fresh", False)


def test_another_run_without_a_checkpoint_is_kept(config):
    start(config)
    assert (find(config, seed=1).kind, find(config, seed=1).in_place) == ("fresh", False)


def test_all_steps_are_done_but_the_figures_are_not_written(config):
    """Killed between the last checkpoint and the end: it goes on from there, with no step to do."""
    start(config, 500, 1000)
    assert (find(config).kind, find(config).checkpoint.step) == ("resume", 1000)


def test_a_finished_run_is_finished(config):
    start(config, 500, 1000, finished=True)
    assert (find(config).kind, find(config).in_place) == ("finished", True)


def test_a_finished_run_without_its_checkpoints_is_finished(config):
    start(config, finished=True)
    assert find(config).kind == "finished"


def test_figures_of_fewer_steps_are_no_end(config):
    folder = start(config, 500, finished=True)
    (folder / "metrics.json").write_text('{"training": {"steps": 500}}')
    assert find(config).kind == "resume"
    (folder / "metrics.json").write_text('{"training"')
    assert find(config).kind == "resume"


def test_a_finished_run_of_another_configuration_is_kept(config):
    start(config, 1000, finished=True)
    for changes in ({"seed": 1}, {"max_train_steps": 500}, {"max_train_steps": 2000, "seed": 1}):
        assert (find(config, **changes).kind, find(config, **changes).in_place) == ("fresh", False)


def test_begin_anew(config):
    start(config, 500)
    assert (find(config, resume=False).kind, find(config, resume=False).in_place) == ("fresh", False)
    start(config, 1000, finished=True)
    assert (find(config, resume=False).kind, find(config, resume=False).in_place) == ("fresh", False)


# --- More steps --------------------------------------------------------------------------------------------------------


def test_a_finished_run_with_a_constant_rate_goes_on_to_more_steps(config):
    folder = start(config, 500, 1000, finished=True)
    found = find(config, max_train_steps=2000)
    assert (found.kind, found.checkpoint.step, found.in_place) == ("resume", 1000, True)
    claim(folder, dataclasses.replace(config, max_train_steps=2000), found.in_place)
    assert find(config, max_train_steps=2000).kind == "resume"  # killed on the way: the figures are of 1000 steps


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(config):
    start(config, finished=True)
    found = find(config, max_train_steps=2000)
    assert (found.kind, found.in_place) == ("fresh", False)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_rate_that_has_fallen_to_zero_does_not_go_on(config, schedule):
    config = dataclasses.replace(config, lr_schedule=schedule)
    start(config, 1000, finished=True)
    assert (find(config, max_train_steps=2000).kind, find(config, max_train_steps=2000).in_place) == ("fresh", False)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_another_end_of_a_falling_rate_is_another_run(config, schedule):
    config = dataclasses.replace(config, lr_schedule=schedule)
    start(config, 500)
    with pytest.raises(UserError, match="`max_train_steps` was 1000 and is 2000"):
        find(config, max_train_steps=2000)


def test_the_end_of_a_constant_rate_may_move_but_not_into_the_past(config):
    start(config, 500)
    assert find(config, max_train_steps=2000).checkpoint.step == 500
    assert find(config, max_train_steps=500).checkpoint.step == 500
    with pytest.raises(UserError, match="`max_train_steps` was 1000 and is 499"):
        find(config, max_train_steps=499)


# --- Another configuration ---------------------------------------------------------------------------------------------

OTHERS = {
    "dataset_name": "other", "dataset_config": "other", "split": "test", "image_column": "image", "label_column": "label",
    "class_conditional": False, "resolution": (8, 4), "random_crop": 1, "random_flip": True, "image_mode": "RGB",
    "block_out_channels": (8, 16), "attention_head_dim": None, "dropout": 0.5, "unet_options": {"act_fn": "gelu"},
    "beta_schedule": "sigmoid", "learning_rate": 2e-3, "batch_size": 32, "ema_decays": (0.99,), "ema_stds": (0.1,),
    "mixed_precision": "bf16", "seed": 3, "log_every": 10, "validation_split": "test", "objective": "hybrid",
    "variance_type": "learned_range", "timestep_sampling": "stratified", "lr_schedule": "linear",
}  # fmt: skip
FREE = {
    "output_dir": "{}/link", "license": "mit", "cache_dir": "/tmp", "gradient_accumulation_steps": 2, "checkpoint_every": 10,
    "checkpoints_kept": 5, "report_to": ("tensorboard",), "tracker_project": "p", "sample_every": 7, "fidelity_samples": 3,
    "num_inference_steps": 5, "eta": 0.5, "push_to_hub": "a/b", "hub_private_repo": False, "max_skipped_steps": 3,
    "gradient_checkpointing": True, "compile": True, "dry_run": True, "unreadable_images": "skip",
}  # fmt: skip


def made(config: TrainConfig, **changes) -> TrainConfig:
    """The configuration, whatever its combinations: what is tested is how two of them are compared."""
    changed = object.__new__(TrainConfig)
    for field in dataclasses.fields(config):
        object.__setattr__(changed, field.name, changes.get(field.name, getattr(config, field.name)))
    return changed


def test_every_key_is_of_one_kind(config):
    """A new option is decided about when it is made, and an old one is not left in the list."""
    names = {field.name for field in dataclasses.fields(config)}
    assert names >= FREE_KEYS
    assert not FREE_KEYS & OTHERS.keys()
    assert FREE.keys() <= FREE_KEYS


@pytest.mark.parametrize("key", OTHERS)
def test_what_changes_the_run_is_refused(config, key):
    folder = start(config, 500)
    with pytest.raises(UserError, match=rf"`{key}` was .* and is .*") as error:
        find_run(made(config, **{key: OTHERS[key]}), folder)
    for remedy in ("step 500 of 1000", "--resume false", "choose another output_dir"):
        assert remedy in str(error.value)


@pytest.mark.parametrize("key", FREE)
def test_what_does_not_change_the_run_may_differ(config, key, tmp_path):
    folder = start(config, 500)
    (tmp_path / "link").symlink_to(folder)
    value = FREE[key].format(tmp_path) if key == "output_dir" else FREE[key]
    changed = made(config, **{key: value})
    assert find_run(changed, folder).checkpoint.step == 500
    claim(folder, changed, in_place=True)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == yaml.safe_load(changed.to_yaml())


def test_the_message_names_all_and_its_remedy_works(config):
    """The flags of the message, given to the parser behind those that were wrong, are the run's."""
    folder = start(config, 500)
    wrong = {"learning_rate": 2e-3, "block_out_channels": (16, 32), "label_column": "digit", "split": "test"}
    with pytest.raises(UserError) as error:
        find(config, **wrong)
    message = str(error.value)
    for key, old, new in (("learning_rate", "0.001", "0.002"), ("block_out_channels", r"\[32, 64\]", r"\[16, 32\]"),
                          ("label_column", "null", '"digit"'), ("split", '"train"', '"test"')):  # fmt: skip
        assert re.search(rf"`{key}` was {old} and is {new}", message), message
    flags, without = re.search(r"give (.*) and leave out `(\w+)`;", message).groups()
    assert without == "label_column"
    given = ["--config", str(folder / "config.yaml"), "--learning_rate", "0.002", "--split", "test"]
    assert find_run(parse_config([*given, *shlex.split(flags)]), folder).kind == "resume"


def test_runs_of_other_versions_are_kept(config):
    folder = start(config, 500)
    content = yaml.safe_load((folder / "config.yaml").read_text())
    for changed in (content | {"ema_decay": 0.9}, {k: v for k, v in content.items() if k != "eta"}):
        (folder / "config.yaml").write_text(yaml.safe_dump(changed))
        assert (find(config).kind, find(config).in_place) == ("fresh", False)


def test_an_earlier_run_in_a_mount_point_goes_on_but_is_not_moved(config, monkeypatch):
    folder = start(config, 500)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == folder)
    assert find(config).kind == "resume"
    with pytest.raises(UserError, match=r"`output_dir` is .*a mount point.*choose a folder in it"):
        find(config, resume=False)


def test_looking_changes_nothing(config, tmp_path):
    folder = start(config, 100, 200)
    (folder / "checkpoints" / ".writing-step_00000300-ab").mkdir()
    (folder / "config.yaml.partial").touch()
    before = tree(tmp_path)
    for changes in ({}, {"dry_run": True}, {"resume": False, "dry_run": True}):
        find(config, **changes)
    with pytest.raises(UserError):
        find(config, seed=1, dry_run=True)
    assert tree(tmp_path) == before


# --- Two at once -------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from output_folder import hold_output
from train_config import TrainConfig
with hold_output(Path(sys.argv[1]), TrainConfig()):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_which_another_process_trains_is_refused_until_it_ends(config):
    folder = start(config, 500)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=REPOSITORY / "training", text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        for changes in ({}, {"resume": False}):
            with pytest.raises(UserError, match=r"`output_dir` is .*, where another process is training; wait"):
                find(config, **changes)
        assert find(config, dry_run=True).kind == "resume"
        with pytest.raises(UserError, match="another process is training"), hold_output(folder, config):
            pass
    finally:
        holder.kill()  # as kill -9 does
        holder.communicate()
    assert find(config).kind == "resume"
    with hold_output(folder, config):
        pass


# --- What is left to do ------------------------------------------------------------------------------------------------


def test_what_a_finished_run_lacks(config):
    config = dataclasses.replace(config, push_to_hub="user/name", guidance_scale=2.0, guidance_interval=(200, 700))
    folder = start(config, 1000, finished=True)
    assert find(config).missing == ("judging", "publishing")
    note_done(config, folder, "judging")
    assert find(config).missing == ("publishing",)
    note_done(config, folder, "publishing")
    assert find(config).missing == ()
    assert find(config, push_to_hub="user/other").missing == ("publishing",)
    assert find(config, sampler="ddpm", eta=0.5).missing == ("judging",)
    assert find(config, guidance_interval=(200, 701)).missing == ("judging",)
    assert find(config, fidelity_samples=0, sampler="ddpm", eta=0.5, push_to_hub=None).missing == ()


def test_a_longer_run_is_judged_anew(config):
    folder = start(config, 1000, finished=True)
    note_done(config, folder, "judging")
    longer = dataclasses.replace(config, max_train_steps=2000)
    assert missing(longer, folder) == ("judging",)


def test_a_note_that_cannot_be_read_is_none(config):
    folder = start(config, 1000, finished=True)
    for text in ("{", "[]", '"judging"', "null"):
        (folder / "done.json").write_text(text)
        assert find(config).missing == ("judging",)
    note_done(config, folder, "judging")
    assert find(config).missing == ()


# --- The data ----------------------------------------------------------------------------------------------------------


def test_the_same_data(config):
    check_data({"data": {"num_images": 5, "fingerprint": "a"}, "other": 1}, Data(5, "a"), config)
    check_data({"data": {"num_images": None, "fingerprint": "a"}}, Data(None, "a"), config)


def test_data_that_shrank(config):
    with pytest.raises(UserError) as error:
        check_data({"data": {"num_images": 60000, "fingerprint": "a"}}, Data(1797, "b"), config)
    assert re.search(
        r"`dataset_name` is 'training/data/digits' with `split` 'train', which has 1,797 images now and had 60,000 images "
        r"when this run began\. To go on .* --resume false",
        str(error.value),
    )


def test_data_that_changed(config):
    with pytest.raises(UserError, match=r"has 5 images, as when this run began, but not the same ones"):
        check_data({"data": {"num_images": 5, "fingerprint": "a"}}, Data(5, "b"), config)
    with pytest.raises(UserError, match=r"has an unknown number of images now and had 5 images"):
        check_data({"data": {"num_images": 5, "fingerprint": "a"}}, Data(None, "a"), config)


class TestPrecision:
    def test_auto_must_mean_the_same(self, config):
        auto = dataclasses.replace(config, mixed_precision="auto")
        check_precision({"mixed_precision": "bf16"}, "bf16", auto)
        with pytest.raises(
            UserError, match="`mixed_precision` is 'auto', which is 'no' on this machine and was 'bf16'"
        ):
            check_precision({"mixed_precision": "bf16"}, "no", auto)

    def test_what_it_meant_may_be_said(self, config):
        auto = dataclasses.replace(config, mixed_precision="auto")
        start(auto, 100)
        assert find(auto, mixed_precision="bf16").kind == "resume"
        with pytest.raises(UserError, match="`mixed_precision` was"):
            find(auto, mixed_precision="no")


def test_passes_are_not_free_with_drop_out(config):
    """Its masks are drawn pass by pass."""
    start(config, 100)
    assert find(config, gradient_accumulation_steps=2).kind == "resume"
    other = dataclasses.replace(config, dropout=0.1, output_dir=config.output_dir + "2")
    start(other, 100)
    with pytest.raises(UserError, match="`gradient_accumulation_steps` was 1 and is 2"):
        find(other, gradient_accumulation_steps=2)
