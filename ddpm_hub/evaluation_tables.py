"""The figures of metrics.json (`metrics_file.py`) as Markdown, for the model card and for evaluation.md.

A table leaves out what the file does not say.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .card_text import code, machine, number, plain, table
from .model_folder import ModelFolder


class Section(NamedTuple):
    """A part of the evaluation: its title, what the table below it shows, and the table, in Markdown."""

    title: str
    text: str
    table: str


def value_and_reference(entry: dict) -> str:
    value = with_error(entry["value"], entry.get("standard_error"))
    compared = [entry.get(key, {}) for key in ("reference", "worst")]
    said = [f"{plain(each['name'])}: {_figure(each, 'value')}" for each in compared if {"name", "value"} <= each.keys()]
    return f"{value} ({'; '.join(said)})" if said else value


def with_error(value: float, error: float | None) -> str:
    """A value ± its standard error, with two digits of that."""
    if not error or not math.isfinite(error):
        return _figure({"value": value}, "value")
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:.{digits}f}"


def evaluation_table(metrics: dict) -> str:
    """The headlines."""
    entries = [entry for entry in metrics.get("evaluation", []) if "value" in entry]

    def figures(key: str) -> list[str]:
        return [number(entry[key]) if key in entry else "" for entry in entries]

    return table(
        {
            "Metric": [plain(entry["name"]) for entry in entries],
            "Value": [value_and_reference(entry) for entry in entries],
            "Samples": figures("num_samples"),
            "Drawn with": [drawn_with(e) if "num_inference_steps" in e else "" for e in entries],
            "First seed": [str(entry.get("seed", "")) for entry in entries],
            "Judged by": [plain(entry.get("extractor", "")) for entry in entries],
            "SHA-256": [
                code(entry["extractor_sha256"][:12]) if "extractor_sha256" in entry else "" for entry in entries
            ],
            "Resized": [plain(entry.get("resize", "")) for entry in entries],
            "Real images": [_split(entry) for entry in entries],
        }
    )


def sampling_quality(model: ModelFolder) -> dict | None:
    """The table of distances by sampler and steps, the model's own in bold."""
    study, own = model.metrics.get("sampling_quality", {}), model.sampling
    if not study.get("rows"):
        return None
    steps = sorted({row["num_inference_steps"] for row in study["rows"]})
    kinds = list(dict.fromkeys((row["sampler"], row["variance_type"]) for row in study["rows"]))
    cells = {
        (row["sampler"], row["variance_type"], row["num_inference_steps"]): _distance(row) for row in study["rows"]
    }
    chosen = (own.get("sampler"), own.get("num_inference_steps"))
    columns: dict[str, list[str]] = {"Sampler": [], "Variance": []} | {f"{n} steps": [] for n in steps}
    for sampler, variance in kinds:
        columns["Sampler"].append(code(sampler))
        columns["Variance"].append("" if variance == "none" else code(variance))
        for n in steps:
            text = cells.get((sampler, variance, n), "")
            is_own = (sampler, n) == chosen and variance in ("none", model.scheduler.get("variance_type"))
            columns[f"{n} steps"].append(f"**{text}**" if is_own and text else text)
    return {
        "description": plain(study.get("description", "")),
        "num_samples": study.get("num_samples"),
        "floor": _distance(study["floor"]) if "floor" in study else None,
        "table": table(columns),
    }


def _distance(row: dict) -> str:
    return f"{1000 * row['value']:.2f} ± {1000 * row['standard_error']:.2f}"


def drawn_with(drawn: dict) -> str:
    """How many steps, and the sampler, η and guidance of samples, where they are not those of a plain DDPM."""
    sampler = drawn.get("sampler", "ddpm")
    count = drawn.get("num_inference_steps")
    parts = [] if count is None else [f"{number(count)} step{'s' if count > 1 else ''}"]
    parts += [code(sampler)] if sampler != "ddpm" else []
    parts += [f"η = {number(drawn['eta'])}"] if drawn.get("eta", 1) != 1 and sampler == "ddpm" else []
    return ", ".join(parts + _guided(drawn)) or "all steps"


def _guided(drawn: dict) -> list[str]:
    parts = [f"guidance {number(drawn['guidance_scale'])}"] if drawn.get("guidance_scale", 1) != 1 else []
    if len(interval := drawn.get("guidance_interval", ())) == 2:
        parts.append("guided for t from {} to {}".format(*map(number, interval)))
    return parts


def speed_table(model: ModelFolder) -> str:
    """How fast the model was trained and sampled."""
    training = {"what": "training", "batch_size": model.config.get("batch_size"), **model.metrics.get("training", {})}
    rows = [row for row in (training, *model.metrics.get("speed", [])) if "images_per_second" in row]

    def figures(key: str) -> list[str]:
        return [number(row[key]) if row.get(key) is not None else "" for row in rows]

    return table(
        {
            "What": [plain(row["what"]) for row in rows],
            "Images per second": figures("images_per_second"),
            "Share of peak": figures("share_of_peak"),
            "Steps per image": figures("num_inference_steps"),
            "Batch": figures("batch_size"),
            "Precision": [plain(row.get("dtype", "")) for row in rows],
            "Machine": [machine(row.get("machine", {})) for row in rows],
        }
    )


# --- The parts of an evaluation -----------------------------------------------------------------------------------------

_DISTANCES = {
    "FID": lambda row: _figure(row, "fid"),
    "KID × 1000": lambda row: _thousandths(row),
    "Compared": lambda row: _figure(row, "num_compared"),
    "Precision": lambda row: _figure(row, "precision"),
    "Recall": lambda row: _figure(row, "recall"),
    "Density": lambda row: _figure(row, "density"),
    "Coverage": lambda row: _figure(row, "coverage"),
    "Class fidelity": lambda row: _percent(row, "class_fidelity"),
}


def evaluation_sections(metrics: dict) -> list[Section]:
    """All that `training/evaluate.py` found, a section for each part that is there."""
    makers = (_bound, _quality, _memorisation, _classes, _steps, _guidance, _equal_time, _calibration, _colour)
    return [section for make in makers if (section := make(metrics)) is not None]


def evaluation_markdown(metrics: dict) -> str:
    """The whole evaluation as a document."""
    described = [e for e in metrics.get("evaluation", []) if "description" in e]
    meanings = "\n".join(f"- **{plain(e['name'])}**: {plain(e['description'])}" for e in described)
    parts = ["# Evaluation", evaluation_table(metrics), meanings]
    for section in evaluation_sections(metrics):
        parts += [f"## {section.title}", section.text, section.table]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bound(metrics: dict) -> Section | None:
    found = metrics.get("bound", {})
    rows = [row for row in found.get("rows", []) if "value" in row]
    spans = list(
        dict.fromkeys((p["from"], p["to"]) for row in rows for p in row.get("parts", []) if {"from", "to"} <= p.keys())
    )

    def between(row: dict, span: tuple[int, int]) -> str:
        return next((_figure(p, "value") for p in row.get("parts", []) if (p.get("from"), p.get("to")) == span), "")

    columns = {
        "Variance": lambda row: code(row.get("variance_type", "")),
        "Bits/dim": lambda row: with_error(row["value"], row.get("standard_error")),
        "L_T": lambda row: _figure(row, "prior"),
        "L_0 (t = 1)": lambda row: _figure(row, "decoder"),
        **{f"t = {a:,} to {b:,}": lambda row, span=(a, b): between(row, span) for a, b in spans},
    }
    text = (
        f"The variational bound of [Ho et al. 2020](https://arxiv.org/abs/2006.11239), equation 5, in bits per dimension, by the "
        f"variance of the reverse step, and its terms{_of(found, 'num_images', ', of {} images')}{_of(found, 'split', ' of the split {}')}, "
        f"over{_of(found, 'dimensions', ' {}')} dimensions{_of(found, 'timesteps_per_image', ', at {} timesteps of each')}"
        f"{_of(found, 'seed', '; seed {}')}. A `±` is one standard error over the images."
    )
    return _section("Bits per dimension", text, columns, rows)


def _quality(metrics: dict) -> Section | None:
    found = metrics.get("quality", {})
    columns = {
        "Images": lambda row: plain(row.get("images", "")) + _of(row, "num_images", " ({})"),
        "Against": lambda row: plain(row.get("against", "")) + _of(row, "num_reference", " ({})"),
        **_DISTANCES,
    }
    score = found.get("inception_score", {})
    rows = found.get("rows", [])
    text = "Samples beside unseen real images (the floor) and noise (the ceiling). "
    if any(row.get("images") == row.get("against", "") for row in rows):
        text += "Images of the split that they are compared with are a second floor: with classes in its proportions, and left out of it. "
    text += _judged(found, drawn_with(found))
    if {"value", "spread", "real"} <= score.keys():
        text += f" Inception Score {with_error(score['value'], score['spread'])} over ten parts (real: {number(score['real'])})."
    return _section("Samples and real images", text, columns, rows)


def _memorisation(metrics: dict) -> Section | None:
    columns = {
        "Compared in": lambda row: plain(row.get("space", "")),
        "As near as copies": lambda row: _percent(row, "share"),
        "Expected": lambda row: _percent(row, "expected"),
        "By chance": lambda row: f"{row['probability']:.3g}" if "probability" in row else "",
        "Nearer than unseen": lambda row: _percent(row, "closeness"),
        "Duplicates": lambda row: _figure(row, "num_duplicates"),
        "Median distance": lambda row: _figure(row, "median"),
        "Of unseen images": lambda row: _figure(row, "unseen_median"),
        "Copies?": lambda row: {True: "**yes**", False: "no"}.get(row.get("is_flagged"), ""),
    }
    text = (
        "Samples' nearest training images beside those of unseen images. A sample is as near as a copy if its nearest training "
        "image is not farther, compared with the next 50, than that of the nearest 1 % of unseen images; copies are reported from 3 % "
        "of the samples on, if chance makes that of samples like unseen images less often than once in a thousand."
    )
    return _section("Copies of training images", text, columns, metrics.get("memorisation", []))


def _classes(metrics: dict) -> Section | None:
    found = metrics.get("classes", {})
    rows = list(found.get("rows", []))
    if "samples" in found or "real" in found:
        rows.append({"name": "all"} | {key: found[key] for key in ("samples", "real") if key in found})
    columns = {
        "Class": lambda row: plain(row.get("name", "")),
        "Samples": lambda row: _percent(row, "samples"),
        "Real images": lambda row: _percent(row, "real"),
    }
    text = (
        f"The share of samples with the class that was asked for, and of real images with their own"
        f"{_of(found, 'num_real', ' ({} images')}{_of(found, 'split', ' of {})')}; judge: {plain(found.get('judge', ''))}."
    )
    return _section("Class fidelity", text, columns, rows)


def _steps(metrics: dict) -> Section | None:
    found = metrics.get("quality_by_steps", {})
    columns = {"Sampler": lambda row: code(row.get("sampler", "")), "Steps": lambda row: _figure(row, "num_inference_steps"),
               **_DISTANCES}  # fmt: skip
    guided = dict.fromkeys(", ".join(_guided(row)) for row in found.get("rows", []))  # the same for all of them
    text = " ".join([_judged(found), *(f"With {each}." for each in guided if each)])
    return _section("Quality by steps", text, columns, found.get("rows", []))


def _guidance(metrics: dict) -> Section | None:
    found = metrics.get("quality_by_guidance", {})
    columns = {
        "Guidance": lambda row: _figure(row, "guidance_scale"),
        "Drawn with": lambda row: drawn_with({key: row[key] for key in row if key != "guidance_scale"}),
        **_DISTANCES,
    }
    return _section("Quality by guidance", _judged(found), columns, found.get("rows", []))


def _equal_time(metrics: dict) -> Section | None:
    found = metrics.get("equal_time", {})
    columns = {
        "Images": lambda row: plain(row.get("images", "")),
        "Training": lambda row: plain(row.get("training", "")),
        "Drawn with": lambda row: plain(row.get("drawn", "")),
        "Parameters": lambda row: _figure(row, "parameters"),
        "Trained on": lambda row: _of(row, "trained_on", "{} images"),
        "Seconds": lambda row: _figure(row, "seconds"),
        "FID": lambda row: _figure(row, "fid"),
    }
    text = (
        f"Training loops that all begin from nothing, after the same wall-clock time on the same data and machine"
        f"{': ' + machine(found['machine']) if found.get('machine') else ''}. None of them is this model, which was trained for "
        f"longer. *ours* is a preset of this package; *documentation* the loop that diffusers' documentation "
        f"teaches; *lucidrains* the package denoising-diffusion-pytorch. {_judged(found)}"
    )
    return _section("Other loops, after the same time", text, columns, found.get("rows", []))


def _calibration(metrics: dict) -> Section | None:
    found = metrics.get("calibration", {})
    columns = {
        "t": lambda row: f"{row['from']:,} to {row['to']:,}" if {"from", "to"} <= row.keys() else "",
        "Loss": lambda row: _figure(row, "loss"),
        "‖E[ε_θ]‖/√d": lambda row: _figure(row, "bias"),
        "Without bias": lambda row: _figure(row, "chance"),
    }
    text = (
        f"The network's noise{_of(found, 'split', ' on the split {}')}: the mean of (ε_θ − ε)², and the norm of the mean of ε_θ − ε "
        f"beside what it would be on average without a bias."
    )
    return _section("Calibration", text, columns, found.get("rows", []))


def _colour(metrics: dict) -> Section | None:
    rows = metrics.get("colour", {}).get("rows", [])
    columns = {
        "Channel": lambda row: _figure(row, "channel"),
        "Mean of samples": lambda row: _figure(row, "mean"),
        "Of training images": lambda row: _figure(row, "real_mean"),
        "Drift": lambda row: with_error(row["mean"] - row["real_mean"], row.get("standard_error")) if {"mean", "real_mean"} <= row.keys() else "",
        "Spread of samples": lambda row: _figure(row, "std"),
        "Spread of training images": lambda row: _figure(row, "real_std"),
    }  # fmt: skip
    return _section("Colour", "Grey levels from 0 to 255.", columns, rows)


def _section(title: str, text: str, columns: dict[str, Callable[[dict], str]], rows: Iterable[dict]) -> Section | None:
    content = table({name: [cell(row) for row in rows] for name, cell in columns.items()})
    return Section(title, text, content) if content else None


def _judged(found: dict, drawn: str = "") -> str:
    """What stands beside figures of samples."""
    parts = [
        _of(found, "num_samples", "{} samples") + (f" with {drawn}" if drawn else ""),
        _of(found, "seed", "seeds from {}"),
        _of(found, "against", "against {}") + _of(found, "num_reference", " ({} images)"),
        f"features of {plain(found['extractor'])}" if "extractor" in found else "",
        f"SHA-256 {code(found['extractor_sha256'][:12])}" if "extractor_sha256" in found else "",
        f"resizing: {plain(found['resize'])}" if "resize" in found else "",
        _of(found, "k", "k = {} neighbours"),
    ]
    said = ", ".join(part for part in parts if part)
    return said[:1].upper() + said[1:] + "." if said else ""


def _of(found: dict, key: str, text: str) -> str:
    if key not in found:
        return ""
    value = found[key]
    return text.format(plain(value) if isinstance(value, str) else number(value))


def _split(entry: dict) -> str:
    said = ", ".join(plain(entry[key]) for key in ("dataset", "split") if key in entry)
    return said + _of(entry, "num_reference", " ({})")


def _figure(row: dict, key: str) -> str:
    """Four digits are more than any of these figures is sure of."""
    if key not in row:
        return ""
    return f"{row[key]:,}" if isinstance(row[key], int) else f"{row[key]:.4g}"


def _percent(row: dict, key: str) -> str:
    return f"{row[key]:.1%}" if key in row else ""


def _thousandths(row: dict) -> str:
    if "kid" not in row:
        return ""
    return with_error(1000 * row["kid"], 1000 * row["kid_standard_error"] if "kid_standard_error" in row else None)
