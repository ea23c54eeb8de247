"""The files that an evaluation leaves in a model's folder beside metrics.json."""

from pathlib import Path

TABLES = "evaluation.md"
PLOTS = "plots"
PICTURES = ("bound", "calibration", "memorisation", "closest_pairs_pixels", "closest_pairs_features", "quality_by_steps",
            "quality_by_guidance")  # fmt: skip


def picture(output: Path, name: str) -> Path:
    """Where one of [`PICTURES`] lies."""
    return output / PLOTS / f"{name}.png"


def remove_evaluation(output: Path) -> None:
    """Takes away what was found of weights that are there no more; metrics.json is written anew by whoever trained."""
    for path in (output / TABLES, *(picture(output, name) for name in PICTURES)):
        path.unlink(missing_ok=True)
