"""How an evaluation is told: the headlines, metrics.json, evaluation.md, the plots and the model's card."""

import json
from pathlib import Path

from durable_files import write_whole
from train_config import UserError

from ddpm_hub.evaluation_tables import evaluation_markdown
from ddpm_hub.metrics_file import metrics_fault, without_nulls
from evaluation import plots
from evaluation.context import Context
from evaluation.extractors import DomainExtractor
from evaluation.files import PLOTS, TABLES, picture, remove_evaluation
from evaluation.measure import BoundResult, SampleResult

METRICS_FILE = "metrics.json"
# Parts of metrics.json, and the headlines of samples.
OF_AN_EVALUATION = {"bound", "calibration", "quality", "memorisation", "classes", "colour", "quality_by_steps", "quality_by_guidance"}  # fmt: skip
OF_SAMPLES = {"fid", "kid", "precision", "recall", "density", "coverage", "inception_score", "class_fidelity",
              "memorisation_pixels", "memorisation_features"}  # fmt: skip


def read_metrics(output: Path, identity: dict) -> dict:
    """What the output folder's metrics.json says already; nothing for a file that is not there.

    Raises:
        UserError: if it cannot be read, or holds the evaluation of another model.
    """
    path = output / METRICS_FILE
    if not path.exists():
        return {}
    try:
        metrics = without_nulls(json.loads(path.read_text(encoding="utf-8")))
        fault = metrics_fault(metrics)
    except (OSError, ValueError) as error:
        fault = str(error)
    if fault:
        raise UserError(
            f"`--output_dir` is {str(output)!r}, whose {METRICS_FILE} is damaged: {fault}. Repair or remove it."
        )
    known = metrics.get("model", {}).get("sha256", identity["sha256"])
    if known != identity["sha256"]:
        changed = [name for name in identity["sha256"] | known if known.get(name) != identity["sha256"].get(name)]
        raise UserError(
            f"`--output_dir` is {str(output)!r}, whose {METRICS_FILE} has the evaluation of another model: {', '.join(changed)} "
            f"differ. Choose another folder, or remove that file to judge this model anew."
        )
    return metrics


def write_report(
    context: Context, output: Path, bound: BoundResult | None, samples: SampleResult | None, tables: dict[str, dict]
) -> dict:
    """Writes all that was measured, beside what the folder says already, and returns the new metrics."""
    metrics = read_metrics(output, context.identity)
    found = (bound.metrics if bound else {}) | (samples.metrics if samples else {}) | tables
    new = headlines(context, found)
    measured = {"bits_per_dim"} if bound else set()
    measured |= OF_SAMPLES if samples else set()
    data = {"dataset": context.held.name, "split": context.held.split, "fingerprint": context.held.data.fingerprint,
            "train_split": context.train.split, "train_fingerprint": context.train.data.fingerprint}  # fmt: skip
    new = [{"dataset": context.held.name} | entry for entry in new]
    if metrics.get("data", data) != data:  # what was measured with other data does not stand beside this
        metrics = {key: value for key, value in metrics.items() if key not in OF_AN_EVALUATION}
        measured = {"bits_per_dim"} | OF_SAMPLES
        remove_evaluation(output)
    kept = [entry for entry in metrics.get("evaluation", []) if entry["type"] not in measured]
    metrics |= without_nulls(
        {"model": {"sha256": context.identity["sha256"]}, "data": data, "evaluation": [*new, *kept]} | found
    )
    if fault := metrics_fault(metrics):
        raise RuntimeError(f"a figure is no finite number: {fault}; nothing was written.")
    (output / PLOTS).mkdir(parents=True, exist_ok=True)
    if bound:
        plots.draw_bound(bound, picture(output, "bound"))
        plots.draw_calibration(bound.metrics["calibration"], picture(output, "calibration"))
    if samples:
        plots.draw_nearness(samples.nearness, picture(output, "memorisation"))
        for space, near in samples.nearness.items():
            plots.draw_pairs(context, samples, near, picture(output, f"closest_pairs_{space}"))
    for name, drawer in (("quality_by_steps", plots.draw_steps), ("quality_by_guidance", plots.draw_guidance)):
        if name in tables:
            drawer(tables[name], metrics.get("quality", {}), picture(output, name))
    write_whole(output / METRICS_FILE, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    write_whole(output / TABLES, evaluation_markdown(metrics))
    return metrics


# --- Headlines ----------------------------------------------------------------------------------------------------------


def headlines(context: Context, found: dict) -> list[dict]:
    """The entries of `evaluation` in metrics.json: of each part the figure that is looked for first."""
    entries = [_bound_entry(found["bound"])] if "bound" in found else []
    if "quality" in found:
        entries += _quality_entries(context, found["quality"])
    if "classes" in found:
        classes = found["classes"]
        entries.append(
            _of_samples(found["quality"])
            | {
                "type": "class_fidelity",
                "name": "Class fidelity",
                "description": "the share of samples to which a classifier gives the class that was asked for",
                "value": classes["samples"],
                "extractor": classes["judge"],
                "split": classes["split"],
                "num_reference": classes["num_real"],
                "reference": {"name": "real images", "value": classes["real"]},
            }
        )
    for each in found.get("memorisation", []):
        judged = _of_samples(found["quality"])
        if each["space"] == "pixels":  # which no extractor has seen
            judged = {
                key: value for key, value in judged.items() if key not in ("extractor", "extractor_sha256", "resize")
            }
        entries.append(
            judged
            | {
                "type": f"memorisation_{each['space']}",
                "name": f"As near to a training image as a copy, in {each['space']}",
                "description": f"the share of samples whose nearest training image, in {each['space']}, is not farther, compared with "
                f"the next 50, than that of the nearest 1 % of unseen images: {'COPIES' if each['is_flagged'] else 'no copies'}",
                "value": each["share"],
                "num_samples": each["num_samples"],
                "split": each["split"],
                "num_reference": each["num_unseen"],
                "reference": {"name": "unseen images", "value": each["expected"]},
            }
        )
    return entries


def _bound_entry(bound: dict) -> dict:
    own, quick = bound["rows"][0], bound["timesteps_per_image"]
    return {
        "type": "bits_per_dim",
        "name": "Bits per dimension",
        "description": f"the variational bound with the {own['variance_type']} variance, over {bound['dimensions']:,} dimensions, "
        f"at {quick:,} timesteps of each image; less is better",
        "value": own["value"],
        "standard_error": own["standard_error"],
        "num_samples": bound["num_images"],
        "seed": bound["seed"],
        "split": bound["split"],
        "num_reference": bound["num_images"],
    }


# The key, the name, and what is to be said.
_QUALITY = (
    ("fid", "FID", "Fréchet distance of the features of samples and training images; less is better"),
    ("kid", "KID", "kernel distance of the same features, without bias; less is better"),
    ("precision", "Precision", "the share of samples among the training images"),
    ("recall", "Recall", "the share of training images among the samples"),
    ("density", "Density", "how dense the training images are where the samples are; about 1 if they are alike"),
    ("coverage", "Coverage", "the share of training images with a sample nearby"),
)


def _quality_entries(context: Context, quality: dict) -> list[dict]:
    """Samples against the training split, between real images and noise."""
    by_images = {(row["images"], row["against"]): row for row in reversed(quality["rows"])}  # the first of each
    split = context.train.split
    ours, real, noise = (by_images[name, split] for name in ("samples", context.held.split, "noise"))
    # Whoever reads FID thinks of Inception's features, which have another scale.
    kind = " of domain features" if isinstance(context.extractor, DomainExtractor) else ""
    entries = []
    for key, name, description in _QUALITY:
        if key not in ours:
            continue
        entry = _of_samples(quality) | {
            "type": key,
            "name": name + (kind if key in ("fid", "kid") else ""),
            "description": description,
            "value": ours[key],
            "split": split,
            "num_reference": ours["num_reference"] if key in ("fid", "kid") else ours["num_compared"],
            "reference": {"name": f"{real['num_images']:,} unseen real images", "value": real[key]},
            "worst": {"name": "noise", "value": noise[key]},
        }
        if key == "kid":
            entry["standard_error"] = ours["kid_standard_error"]
        entries.append(entry)
    if "inception_score" in quality:
        score = quality["inception_score"]
        entries.append(
            _of_samples(quality)
            | {
                "type": "inception_score",
                "name": "Inception Score",
                "description": "how sure and how varied the classes are; more is better",
                "value": score["value"],
                "reference": {"name": "unseen real images", "value": score["real"]},
            }
        )
    return entries


def _of_samples(quality: dict) -> dict:
    """What stands beside a headline of samples."""
    return {key: value for key, value in quality.items() if key not in ("rows", "inception_score", "k")}


def summary(metrics: dict) -> str:
    """What the command says at its end, a line for each headline."""
    quality = metrics.get("quality", metrics.get("quality_by_steps", metrics.get("quality_by_guidance", {})))
    lines = [f"  Features of {quality['extractor']}, SHA-256 {quality['extractor_sha256'][:12]}"] if quality else []
    for entry in metrics["evaluation"]:
        error = f" ± {entry['standard_error']:.2g}" if "standard_error" in entry else ""
        compared = [entry[key] for key in ("reference", "worst") if key in entry]
        beside = "; ".join(f"{each['name']}: {each['value']:.4g}" for each in compared)
        lines.append(f"  {entry['name']}: {entry['value']:.4g}{error}" + (f"   ({beside})" if beside else ""))
    lines += [
        f"  COPIES: {each['share']:.1%} of the samples are as near to a training image as copies, in {each['space']}."
        for each in metrics.get("memorisation", [])
        if each["is_flagged"]
    ]
    return "\n".join(lines)
