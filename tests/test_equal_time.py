"""benchmarks/equal_time.py: every contender really trains and draws, and what was made for other options is not taken."""

import json
import shutil

import pytest
from conftest import run_python
from safetensors import safe_open

from ddpm_hub import shipped_model
from ddpm_hub.metrics_file import metrics_fault

SECONDS = 0.6
COMMAND = ("benchmarks/equal_time.py", "--dataset", "training/data/digits", "--preset", "smoke", "--minutes", str(SECONDS / 60),
           "--num_samples", "150", "--contenders", "ours", "documentation", "documentation_tuned")  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of the images, and the table that was printed."""
    folder = tmp_path_factory.mktemp("equal_time")
    shutil.copytree(shipped_model("digits"), folder / "model")
    result = run_python(*COMMAND, "--output", str(folder), "--store", str(folder / "model"))
    assert result.returncode == 0, result.stderr
    return folder, result


def test_each_is_trained_and_drawn(compared):
    folder, result = compared
    found = json.loads((folder / "model" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics_fault(found) is None
    assert result.stdout.strip() in (folder / "model" / "README.md").read_text(encoding="utf-8")
    rows = {row["images"]: row for row in found["equal_time"]["rows"]}
    assert list(rows) == [
        *(
            "ours",
            "ours, drawn as the others",
            "documentation",
            "documentation_tuned",
            "training images",
            "unseen images",
        )
    ]
    assert rows["documentation"]["training"] == "rate 0.0001, 16 images a step, AdamW, no classes, no average, float32"
    assert ", AdamW, classes" in rows["ours"]["training"]
    assert rows["ours"]["drawn"] != rows["ours, drawn as the others"]["drawn"] == rows["documentation"]["drawn"]
    # A classifier of digits tells all of them, after half a second, from digits.
    trained = [row["fid"] for name, row in rows.items() if name[-6:] != "images"]
    assert min(trained) > 3 * max(rows[name]["fid"] for name in ("training images", "unseen images"))
    for name in ("ours", "documentation", "documentation_tuned"):
        with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
            images = file.get_tensor(name)
        assert images.shape == (150, 1, 8, 8)
        assert len(images.flatten(1).unique(dim=0)) > 100, "not all alike"


def test_it_is_not_trained_again(compared):
    folder, first = compared
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    again = run_python(*COMMAND, "--output", str(folder))
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--minutes", "2"), r"was made with other options (minutes: 0.01)"),
        (("--num_samples", "149"), r"was made with other options (num_samples: 150)"),
        (("--preset", "fashion_mnist_refined"), "which begins with another model's weights"),
    ],
)
def test_what_cannot_be_compared_is_refused(compared, options, said):
    folder, _ = compared
    refused = run_python(*COMMAND, "--output", str(folder), *options)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
