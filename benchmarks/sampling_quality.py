"""How near samples are to the data, by the number of steps, the sampler and the variance: a table, a plot, and the best default.

    python benchmarks/sampling_quality.py --models outputs/digits [outputs/digits_learned_range] --dataset training/data/digits
        [--held_out test] [--num_images 1024] [--batch_size 256] [--fast] [--output docs/sampling_quality] [--store]

The distance is the energy distance of Székely and Rizzo (2013), 2E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖ between samples x and
training images y, in pixels, over √(number of pixels), without bias (no image is compared with itself), in thousandths. Beside
it stands its standard error (jackknife over 16 blocks of samples) and, as a floor, the distance of held-out real images.
Every sampler draws the same classes, in the data's proportions, from the same seeds.

"Like 1,000 steps" is what is not farther from the data than DDPM with all T steps and the model's own variance, by two
standard errors of the difference, block by block. Of those the one with the fewest network calls is the best default;
--store writes it into the model's own configuration, and the table and the plot into its folder, where the card shows them.

A network with a learned variance is another network: it is a model of its own. Results are kept in OUTPUT.json as they come, and
a run that is repeated goes on from there.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "training"))

STEPS = (5, 10, 20, 50, 100, 250, 1000)
FIXED_VARIANCES = ("fixed_small", "fixed_large", "analytic")
BLOCKS = 16


def main() -> None:
    options = parse()
    from train_config import TrainConfig

    from ddpm_hub import DDPMHubPipeline

    def images(split: str):
        from image_data import load_images

        data = load_images(TrainConfig(dataset_name=options.dataset, split=split))
        return data.at(torch.arange(len(data)))

    real, labels = images("train")
    held, _ = images(options.held_out)
    reference = Reference(real, labels)
    results = Results(options.output.with_suffix(".json"), options, reference.floor(held))
    for folder in options.models:
        pipeline = DDPMHubPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        classes = (
            None
            if pipeline.num_classes is None
            else labels[torch.arange(options.num_images) * len(labels) // options.num_images]
        )
        for row in rows_for(pipeline, folder.name, options.steps):
            if results.has(row):
                continue
            started = time.perf_counter()
            samples = draw(pipeline, row, classes, reference, options)
            results.add(row, reference.distances(samples), time.perf_counter() - started)
            print(results.lines[-1], flush=True)
        print(f"\n{folder.name}\n{results.table(folder.name)}")
        best = results.best(folder.name, pipeline.scheduler.config.variance_type)
        print(f"like 1,000 steps: {best['sampler']} with {best['num_inference_steps']} steps", flush=True)
        if options.store:
            store(folder, pipeline, results)
    print(f"held-out real images: {1000 * results.floor['value']:.2f} ± {1000 * results.floor['standard_error']:.2f}")
    results.plot(options.output.with_suffix(".png"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--held_out", default="test")
    parser.add_argument("--num_images", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "sampling_quality")
    parser.add_argument("--store", action="store_true")
    return parser.parse_args()


# --- The distance ---


class Reference:
    """The energy distance of samples to training images."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor | None):
        self.real, self.images, self.labels = as_points(pixels), pixels, labels
        count = len(self.real)
        self.within = torch.cdist(self.real, self.real).sum() / (count * (count - 1))

    def distances(self, samples: torch.Tensor) -> list[float]:
        """The distance of all samples, and then of all but one block, for each of the blocks."""
        points = as_points(samples)
        to_real, among = torch.cdist(points, self.real).mean(1), torch.cdist(points, points)
        blocks = torch.arange(len(points)) % BLOCKS
        keep = [blocks != left_out for left_out in range(-1, BLOCKS)]
        values = []
        for rows in keep:
            count = int(rows.sum())
            own = among[rows][:, rows].sum() / (count * (count - 1))
            values.append((2 * to_real[rows].mean() - own - self.within).item())
        return values

    def floor(self, held: torch.Tensor) -> list[float]:
        return self.distances(held)


def as_points(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 images as rows of float64, such that Euclidean distance is the root mean square over the pixels, in [0, 1]."""
    return pixels.flatten(1).double() / 255 / pixels[0].numel() ** 0.5


def standard_error(left_out: torch.Tensor) -> float:
    """Jackknife over blocks: √((B−1)/B Σ(θ_b − θ̄)²)."""
    return ((len(left_out) - 1) / len(left_out) * (left_out - left_out.mean()).square().sum()).sqrt().item()


# --- What is drawn ---


def rows_for(pipeline, model: str, steps=STEPS) -> list[dict]:
    """Every sampler at every number of steps; the variance matters to DDPM alone."""
    from ddpm_hub.ddpm_samplers import SAMPLERS

    own = pipeline.scheduler.config.variance_type
    learned = own in ("learned", "learned_range")
    kinds = [("ddpm", own)] if learned else [("ddpm", v) for v in FIXED_VARIANCES]
    kinds += [] if learned else [(sampler, "none") for sampler in SAMPLERS if sampler != "ddpm"]
    return [
        {"model": model, "sampler": sampler, "variance_type": variance, "num_inference_steps": n}
        for n in steps
        for sampler, variance in kinds
    ]


def draw(pipeline, row: dict, classes, reference: Reference, options) -> torch.Tensor:
    """Samples of one row as uint8; image i has seed i."""
    from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
    from ddpm_hub.ddpm_equations import denormalize

    scheduler, spacing = pipeline.scheduler, "trailing"
    if row["variance_type"] == "analytic":
        # Its last step leads from t = 1: noise that the last step cannot add would be missing.
        scheduler, spacing = with_analytic_variance(pipeline, reference), "linspace"
    elif row["variance_type"] != "none":
        scheduler = DDPMHubScheduler.from_config(scheduler.config, variance_type=row["variance_type"])
    drawing = DDPMHubPipeline(pipeline.unet, scheduler)
    drawing.set_progress_bar_config(disable=True)
    if options.fast:
        drawing._compiled = pipeline._compiled_network()
    samples = []
    for start in range(0, options.num_images, options.batch_size):
        chunk = range(start, min(start + options.batch_size, options.num_images))
        sample = drawing(
            len(chunk),
            class_labels=None if classes is None else classes[chunk.start : chunk.stop],
            num_inference_steps=row["num_inference_steps"],
            sampler=row["sampler"],
            timestep_spacing=spacing if row["sampler"] in ("ddpm", "ddim") else None,
            seed=start,
            output_type="sample",
            fast=options.fast,
        ).images
        samples.append(denormalize(sample))
    return torch.cat(samples)


_analytic = {}


def with_analytic_variance(pipeline, reference: Reference):
    """The same scheduler with the variance estimated on the training images and their classes; once for each model."""
    from ddpm_hub import DDPMHubScheduler, estimate_original_sample_variances
    from ddpm_hub.ddpm_equations import normalize

    if id(pipeline) not in _analytic:
        seen = 0  # the estimate takes the images in turn, so many at each timestep

        def predict(x_t, t):
            nonlocal seen
            labels = None
            if pipeline.num_classes is not None:
                labels = reference.labels[(torch.arange(len(t)) + seen) % len(reference.labels)]
            seen += len(t)
            return pipeline.unet(x_t, t, class_labels=labels).sample

        variances = estimate_original_sample_variances(
            pipeline.scheduler,
            predict,
            normalize(reference.images),
            generator=torch.Generator().manual_seed(0),
            show_progress=False,
        )
        _analytic[id(pipeline)] = DDPMHubScheduler.from_config(
            pipeline.scheduler.config, variance_type="analytic", original_sample_variances=variances
        )
    return _analytic[id(pipeline)]


# --- What comes out ---


class Results:
    """Rows on disk, as they come."""

    def __init__(self, path: Path, options, floor: list[float]):
        self.path = path
        settings = {
            "num_images": options.num_images, "batch_size": options.batch_size,
            "dataset": Path(options.dataset).name, "held_out": options.held_out,
        }  # fmt: skip
        self.content = (
            json.loads(path.read_text()) if path.is_file() else {"settings": settings, "floor": floor, "rows": []}
        )
        if self.content["settings"] != settings:
            sys.exit(f"{path} holds results of {self.content['settings']}; name another --output, or remove it.")
        self.lines: list[str] = []

    def has(self, row: dict) -> bool:
        return any(all(old[key] == value for key, value in row.items()) for old in self.content["rows"])

    def add(self, row: dict, values: list[float], seconds: float) -> None:
        error = standard_error(torch.tensor(values[1:], dtype=torch.float64))
        self.content["rows"].append(
            row | {"value": values[0], "standard_error": error, "left_out": values[1:], "seconds": round(seconds, 1)}
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")
        self.lines.append(
            f"{row['model']} {row['sampler']:6} {row['variance_type']:13} {row['num_inference_steps']:5} steps: "
            f"{1000 * values[0]:7.3f} ± {1000 * error:.3f}   {seconds:.0f} s"
        )

    def rows_of(self, model: str) -> list[dict]:
        return [row for row in self.content["rows"] if row["model"] == model]

    def best(self, model: str, own: str) -> dict:
        """The row with the fewest network calls that is as near to the data as DDPM with all steps; of equals the nearest."""
        rows = self.rows_of(model)
        full = max((r for r in rows if r["variance_type"] == own), key=lambda r: r["num_inference_steps"])
        fit = [row for row in rows if row["variance_type"] in (own, "none") and is_like(row, full)]
        return min(fit, key=lambda row: (row["num_inference_steps"], row["value"]))

    def table(self, model: str) -> str:
        """Markdown: a line for each sampler and variance, a column for each number of steps."""
        rows = self.rows_of(model)
        steps = sorted({row["num_inference_steps"] for row in rows})
        kinds = list(dict.fromkeys((row["sampler"], row["variance_type"]) for row in rows))
        lines = [f"| sampler | variance | {' | '.join(f'{n} steps' for n in steps)} |", "|---" * (len(steps) + 2) + "|"]
        for kind in kinds:
            cells = {r["num_inference_steps"]: r for r in rows if (r["sampler"], r["variance_type"]) == kind}
            texts = [
                f"{1000 * cells[n]['value']:.2f} ± {1000 * cells[n]['standard_error']:.2f}" if n in cells else ""
                for n in steps
            ]
            lines.append(f"| `{kind[0]}` | {'' if kind[1] == 'none' else f'`{kind[1]}`'} | {' | '.join(texts)} |")
        return "\n".join(lines)

    @property
    def floor(self) -> dict:
        whole, *left_out = self.content["floor"]
        return {"value": whole, "standard_error": standard_error(torch.tensor(left_out, dtype=torch.float64))}

    def plot(self, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        models = list(dict.fromkeys(row["model"] for row in self.content["rows"]))
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for model in models:
            for sampler, variance in dict.fromkeys((r["sampler"], r["variance_type"]) for r in self.rows_of(model)):
                points = [r for r in self.rows_of(model) if (r["sampler"], r["variance_type"]) == (sampler, variance)]
                name = sampler if variance == "none" else f"{sampler}, {variance}"
                axes.errorbar(
                    [r["num_inference_steps"] for r in points],
                    [1000 * r["value"] for r in points],
                    yerr=[1000 * r["standard_error"] for r in points],
                    marker="o", markersize=3, capsize=2, linewidth=1.2, label=name,
                    linestyle="--" if variance == "none" else "-",
                )  # fmt: skip
        floor = 1000 * self.floor["value"]
        axes.axhline(floor, color="black", linewidth=0.8, linestyle=":", label="held-out real images")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="steps (network calls)",
            ylabel="energy distance to the data, thousandths",
        )
        ticks = sorted({row["num_inference_steps"] for row in self.content["rows"]})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(path, dpi=120)


def is_like(row: dict, full: dict) -> bool:
    """Whether a row is not farther from the data than another by two standard errors of the difference."""
    differences = torch.tensor(row["left_out"], dtype=torch.float64) - torch.tensor(
        full["left_out"], dtype=torch.float64
    )
    return row["value"] - full["value"] <= 2 * standard_error(differences)


def store(folder: Path, pipeline, results: Results) -> None:
    """Makes the best default the model's own, and puts the table and the plot into its folder."""
    from ddpm_hub.ddpm_hub_layout import write_model_index
    from ddpm_hub.model_card import write_card

    best = results.best(folder.name, pipeline.scheduler.config.variance_type)
    sampling = {"sampler": best["sampler"], "num_inference_steps": best["num_inference_steps"]}
    own = pipeline.config.sampling or {}
    sampling |= {name: own[name] for name in ("guidance_scale", "guidance_interval") if name in own}
    write_model_index(folder, pipeline.config.id2label, sampling)
    file = folder / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    keys = ("sampler", "variance_type", "num_inference_steps", "value", "standard_error")
    metrics["sampling_quality"] = {
        "description": "Energy distance of samples to the training images, in pixels.",
        "num_samples": results.content["settings"]["num_images"],
        "floor": results.floor,
        "rows": [{key: row[key] for key in keys} for row in results.rows_of(folder.name)],
    }
    file.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "plots").mkdir(exist_ok=True)
    results.plot(folder / "plots" / "sampling_quality.png")
    write_card(folder)


if __name__ == "__main__":
    main()
