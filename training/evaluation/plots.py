"""The pictures of an evaluation, as PNG."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.context import Context
from evaluation.measure import BoundResult, SampleResult
from evaluation.memorisation import Nearness, closest

DPI = 120
BARS = 40


def draw_bound(bound: BoundResult, path: Path) -> None:
    """The terms by t, and their sum up to t, for every variance."""
    figure, (left, right) = _figure(10, 4, 2)
    for row in bound.metrics["bound"]["rows"]:
        terms = bound.terms[row["variance_type"]]
        times = np.arange(1, len(terms) + 1)
        name = f"{row['variance_type']}: {row['value']:.3f}"
        edges = np.unique(np.geomspace(1, len(terms) + 1, 60).round().astype(int))
        means = [terms[a - 1 : b - 1].mean().item() for a, b in pairwise(edges)]
        left.plot((edges[:-1] + edges[1:] - 1) / 2, means, label=name, linewidth=1.3)
        right.plot(times, terms.cumsum(0).numpy() + row["prior"], label=name, linewidth=1.3)
    left.set(
        xscale="log", yscale="log", xlabel="t", ylabel="bits per dimension", title="each term (t = 1 is the decoder's)"
    )
    right.set(xscale="log", xlabel="t", ylabel="bits per dimension", title="sum of the terms up to t, with L_T")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(fontsize=8, title="variance: the whole bound", title_fontsize=8)
    figure.savefig(path, dpi=DPI)


def draw_calibration(calibration: dict, path: Path) -> None:
    """Loss and bias of the noise by t."""
    figure, (left, right) = _figure(10, 3.6, 2)
    rows = calibration["rows"]
    middles = [(row["from"] + row["to"]) / 2 for row in rows]
    left.plot(middles, [row["loss"] for row in rows], marker="o", markersize=4)
    left.set(xlabel="t", ylabel="mean of (ε_θ − ε)²", title=f"loss on the split {calibration['split']}", yscale="log")
    right.plot(middles, [row["bias"] for row in rows], marker="o", markersize=4, label="‖E[ε_θ]‖ / √d")
    right.plot(
        middles, [row["chance"] for row in rows], linestyle="--", color="gray", label="on average without a bias"
    )
    right.set(xlabel="t", title="mean error of the noise", ylim=(0, None))
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)


def draw_nearness(found: dict[str, list[Nearness]], path: Path) -> None:
    """How far samples and unseen images are from their nearest training image, in every space."""
    figure, axes = _figure(10, 3.6, len(found))
    for axis, (space, (samples, unseen)) in zip(axes, found.items(), strict=True):
        together = torch.cat([samples.ratios, unseen.ratios]).numpy()
        edges = np.linspace(0, np.quantile(together, 0.999), BARS)
        for near, name in ((samples, "samples"), (unseen, "unseen images")):
            axis.hist(near.ratios.numpy(), edges, density=True, histtype="step", linewidth=1.5, label=name)
        axis.set(xlabel="distance to the nearest training image / to the next 50", title=f"in {space}", yticks=[])
        axis.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=DPI)


def draw_pairs(context: Context, result: SampleResult, near: list[Nearness], path: Path) -> None:
    """The samples that are most like copies, above their nearest training images; beside them the same of unseen images."""
    train_rows = context.train.rows(context.options.reference_images)
    figure, axes = _figure(11, 2.3, 2)
    shown = ((axes[0], "samples", near[0], result.pixels), (axes[1], "unseen images", near[1], result.held_pixels))
    for axis, name, nearness, pixels in shown:
        rows = closest(nearness)
        beside = context.train.as_bytes(train_rows[nearness.rows[rows]])
        picture = np.concatenate([_strip(pixels[rows]), _strip(beside)])
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        width = picture.shape[1] / len(rows)
        axis.set_xticks(
            (np.arange(len(rows)) + 0.5) * width - 0.5, [f"{ratio:.2f}" for ratio in nearness.ratios[rows]], fontsize=8
        )
        axis.set_yticks([])
        axis.set_title(f"{name} (above) and their nearest training images", fontsize=10)
    figure.supxlabel("distance to the nearest training image / to the next 50: 0 is a copy", fontsize=9)
    figure.savefig(path, dpi=DPI)


def draw_steps(table: dict, quality: dict, path: Path) -> None:
    """Distance by steps, a line for each sampler."""
    rows = table["rows"]
    lines = {
        sampler: [row for row in rows if row["sampler"] == sampler]
        for sampler in dict.fromkeys(r["sampler"] for r in rows)
    }
    _draw_table(table, quality, lines, "num_inference_steps", "steps", path, logarithmic=True)


def draw_guidance(table: dict, quality: dict, path: Path) -> None:
    """Distance and class fidelity by guidance."""
    _draw_table(table, quality, {table["rows"][0]["sampler"]: table["rows"]}, "guidance_scale", "guidance w", path)


def _draw_table(
    table: dict, quality: dict, lines: dict, key: str, label: str, path: Path, logarithmic: bool = False
) -> None:
    """FID, KID with its standard error, precision and recall, and the class fidelity, over one of the settings."""
    rows = table["rows"]
    panels = [name for name in ("fid", "kid", "precision", "class_fidelity") if name in rows[0]]
    titles = {"fid": "FID", "kid": "KID × 1000 ± one standard error", "precision": "precision (—) and recall (- -)",
              "class_fidelity": "class fidelity"}  # fmt: skip
    figure, axes = _figure(3.6 * len(panels), 3.6, len(panels))
    floor = next((row for row in quality.get("rows", []) if row["images"] not in ("samples", "noise")), {})
    ticks = sorted({row[key] for row in rows})
    for panel, axis in zip(panels, axes, strict=True):
        scale = 1000 if panel == "kid" else 1
        for name, some in lines.items():
            values, found = [row[key] for row in some], [scale * row[panel] for row in some]
            errors = [scale * row["kid_standard_error"] for row in some] if panel == "kid" else None
            drawn = axis.errorbar(values, found, errors, marker="o", markersize=4, capsize=2, label=name)
            if panel == "precision":
                recall = [row["recall"] for row in some]
                axis.plot(values, recall, marker="s", markersize=4, linestyle="--", color=drawn[0].get_color())
        if panel in floor:
            line = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
            axis.axhline(scale * floor[panel], label=f"{floor['num_images']:,} unseen real images", **line)
        if panel == "precision":
            axis.set_ylim(0, 1.02)
        axis.set(title=titles[panel], xlabel=label, xscale="log" if logarithmic else "linear")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    compared = f"against {table['num_reference']:,} images of the split {table['against']}"
    figure.suptitle(f"{table['num_samples']:,} samples each, {compared}", fontsize=9)
    figure.savefig(path, dpi=DPI)


def _figure(width: float, height: float, columns: int):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _strip(pixels: torch.Tensor) -> np.ndarray:
    """Images side by side: shape (H, n·W), or (H, n·W, 3) of colour; the first channel where there are other numbers."""
    shown = pixels if pixels.shape[1] in (1, 3) else pixels[:, :1]
    padded = torch.nn.functional.pad(shown, (1, 1, 1, 1), value=128)
    row = torch.cat(list(padded), dim=2).permute(1, 2, 0).numpy()
    return row.repeat(3, axis=2) if row.shape[2] == 1 else row
