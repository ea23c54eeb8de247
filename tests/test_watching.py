"""What a run shows: tables, plots and trackers, with numbers that are checked against the data and the pictures."""

import csv
import json
import re

import datasets
import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm
from watching import BAR

FLAGS = ["--block_out_channels", "[8,16]", "--max_train_steps", "12", "--warmup_steps", "2", "--batch_size", "8",
         "--num_inference_steps", "2", "--fidelity_samples", "10", "--sample_every", "6", "--log_every", "4",
         "--validation_split", "train[:50]", "--validation_every", "6", "--split", "train[50:]", "--ema_decays", "[0.9,0.5]",
         "--eta", "0", "--guidance_scale", "1.5"]  # fmt: skip


def rows(file) -> list[dict[str, float]]:
    with file.open() as opened:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(opened)]


@pytest.fixture(scope="module")
def run(trains, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "run"
    result = trains.run(*FLAGS, "--report_to", "[tensorboard]", "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    (folder / "stderr.txt").write_text(result.stderr)
    return folder


def test_the_log_has_a_line_for_each_interval(run):
    log = rows(run / "loss_log.csv")
    assert [row["step"] for row in log] == [4, 8, 12]
    for row in log:
        # The quartiles hold different numbers of images, so their mean is only near the mean.
        quartiles = [row[f"loss_q{q}"] for q in (1, 2, 3, 4)]
        assert min(quartiles) <= row["loss"] <= max(quartiles)
        assert row["grad_norm"] > 0
        assert row["skipped_steps"] == 0
        assert row["ema_decay_0.5"] <= 0.5
    assert log[0]["learning_rate"] > log[-1]["learning_rate"] > 0


def test_validation_is_measured_when_it_is_due(run):
    validated = rows(run / "validation_log.csv")
    assert [row["step"] for row in validated] == [6, 12]
    assert validated[1]["loss"] < validated[0]["loss"]


def test_the_colour_of_the_samples_stands_beside_that_of_the_data(run):
    table = datasets.load_dataset(str(REPOSITORY / "training" / "data" / "digits"), split="train[50:]")
    chosen = np.arange(1000) * len(table) // 1000  # evenly spaced, as data may be sorted
    data = np.mean([np.asarray(image) for image in table.select(chosen)["image"]]) / 255
    last = rows(run / "sample_log.csv")[-1]
    assert last["data_mean_0"] == pytest.approx(data)
    with Image.open(run / "samples" / "step_000012.png") as image:
        grid = np.asarray(image.convert("L"), dtype=float)
    scale = grid.shape[1] // (10 * 9 - 1)
    # Cell by cell, without the white lines between them.
    cells = [
        grid[r * 9 * scale : (r * 9 + 8) * scale, c * 9 * scale : (c * 9 + 8) * scale]
        for r in range(8)
        for c in range(10)
    ]
    assert last["sample_mean_0"] == pytest.approx(np.mean(cells) / 255)


def test_raw_and_averaged_weights_are_drawn_side_by_side(run):
    with Image.open(run / "samples" / "step_000012.png") as image:
        single = np.asarray(image.convert("RGB"))
    with Image.open(run / "samples" / "raw_and_averaged" / "step_000012.png") as image:
        both = np.asarray(image)
    height, width = single.shape[:2]
    assert np.array_equal(both[-height:, -width:], single)
    assert not np.array_equal(both[-height:, :width], single)


def test_a_tracker_gets_the_same_numbers(run):
    events = EventAccumulator(str(next(run.glob("trackers/*/events*")).parent))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    assert logged == pytest.approx(
        {row["step"]: row["loss"] for row in rows(run / "loss_log.csv")}, rel=1e-6
    )  # float32
    assert events.Scalars("train/images_per_second")[0].value > 0
    assert 0 < events.Scalars("train/share_of_peak")[0].value < 1
    assert {"validation/loss", "samples/sample_mean_0", "train/ema_decay_0.9"} <= set(events.Tags()["scalars"])


def test_the_bar_shows_loss_gradient_and_share_of_peak(run):
    last = (run / "stderr.txt").read_text().split("100% 96.0/96.0 ")[-1]
    assert re.search(r"images/s, loss=\d+\.\d+, grad=\d+\.\d+, peak=\d+%\]", last)


def test_the_bar_fits_80_columns():
    """The second half of the Fashion-MNIST model, with an hour gone and ten left."""
    shown = tqdm.format_meter(
        n=123e3, total=512e3, elapsed=4235, rate=10.5, ncols=79, bar_format=BAR, unit=" images", unit_scale=True,
        postfix="loss=0.401, grad=0.78, peak=56%",
    )  # fmt: skip
    assert shown.startswith("24% 123k/512k [1:10:35<10:17:27 10.5 images/s, loss=0.401, grad=0.78, peak=56%]")


def test_metrics_say_how_the_samples_were_drawn(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for drawn in (metrics["samples"], metrics["evaluation"][0]):
        assert (drawn["num_inference_steps"], drawn["eta"], drawn["guidance_scale"], drawn["seed"]) == (2, 0, 1.5, 0)
    assert 0 < metrics["training"]["share_of_peak"] < 1


def test_the_loss_curve_is_a_picture(run):
    with Image.open(run / "loss_curve.png") as image:
        assert image.size == (1320, 480)
        assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 50
