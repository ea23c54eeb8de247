"""The parts of an evaluation: each computes its stages, in all processes, and gives its figures as metrics.json has them.

What the keys mean is said in `ddpm_hub/metrics_file.py` and docs/EVALUATION.md.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from image_data import spread_rows

from ddpm_hub.ddpm_sampling_settings import SamplingSettings
from ddpm_hub.variational_bound import VariationalBound
from evaluation import bound as b
from evaluation.classes import ClassJudge, agreement
from evaluation.context import Context
from evaluation.distances import compare_manifolds, frechet_distance, inception_score, kernel_distance
from evaluation.memorisation import Nearness, judge_copying, nearness
from evaluation.options import STEPS
from evaluation.samples import stored_settings

LARGEST_COMPARED = 10_000  # images of a set at most where all pairs are looked at
CHUNK, CHUNK_VALUES = 1024, 2**25  # training images, and their values, that are compared at once
# The paper's t at which the parts of the table of terms begin; t = 1 is the decoder's.
FIRSTS = (2, 11, 51, 101, 251, 501, 1001, 2001)


# --- The bound ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoundResult:
    """Attributes:
    metrics (`dict`): `bound` and `calibration` of metrics.json.
    terms (`dict[str, torch.Tensor]`): of each variance, the mean term in bits per dimension at each timestep.
    """

    metrics: dict
    terms: dict[str, torch.Tensor]


def measure_bound(context: Context) -> BoundResult | None:
    """Bits per dimension for every variance, and the calibration; `None` in all processes but the main one."""
    options, held, scheduler = context.options, context.held, context.pipeline.scheduler
    dtype = torch.float64 if options.float64 else torch.float32
    unet = context.pipeline.unet
    network = unet.to(dtype) if options.float64 else unet
    measured, num_timesteps = b.Measured(network, scheduler, dtype), len(scheduler)
    facts = context.facts | {
        "data": held.data.fingerprint, "batch_size": options.batch_size, "seed": options.seed, "float64": options.float64,
        "padding": options.padding,
    }  # fmt: skip
    variances = _analytic_variances(context, measured, facts)
    bounds = b.make_bounds(scheduler, held.bit_depth, variances)
    rows = held.rows(options.bound_images)
    every = b.EveryTimestep(rows, num_timesteps, options.batch_size)
    plan, facts = every, facts | {"images": len(rows), "variances": list(bounds), "analytic": variances}
    if options.timesteps_per_image is not None:
        few = held.rows(b.PILOT_IMAGES)
        pilot = b.bound_stage(
            "pilot", measured, held, b.EveryTimestep(few, num_timesteps, options.batch_size), bounds, facts | {"pilot": len(few)}, options.seed
        )  # fmt: skip
        terms, timesteps = context.work.run(pilot).joined("terms", "timesteps")
        probabilities = b.important_timesteps(terms[:, 0], timesteps, num_timesteps)
        plan = b.ImportantTimesteps(rows, options.batch_size, options.timesteps_per_image, probabilities, options.seed)
        facts |= {"timesteps_per_image": options.timesteps_per_image}
    results = context.work.run(b.bound_stage("bound", measured, held, plan, bounds, facts, options.seed))
    if options.float64:
        unet.to(torch.float32)
    return _bound_result(context, results, plan, bounds, rows) if context.is_main else None


def _analytic_variances(context: Context, measured: b.Measured, facts: dict) -> list[float] | None:
    """V_t from training images; `None` if it was left out or is stored with the model."""
    options, train = context.options, context.train
    if not options.analytic_images or context.pipeline.scheduler.config.variance_type == "analytic":
        return None
    num_timesteps = len(measured)
    facts = facts | {"data": train.data.fingerprint, "images": options.analytic_images}
    plan = b.SomeAtEachTimestep(
        train.rows(options.analytic_images * num_timesteps), num_timesteps, options.analytic_images, options.batch_size
    )
    results = context.work.run(b.error_stage(measured, train, plan, facts, options.seed))
    return b.original_sample_variances(*results.joined("error", "timesteps"), num_timesteps)


def _bound_result(
    context: Context, results, plan, bounds: dict[str, VariationalBound], rows: torch.Tensor
) -> BoundResult:
    held, num_timesteps = context.held, len(context.pipeline.scheduler)
    found_rows, timesteps, terms, loss = results.joined("rows", "timesteps", "terms", "loss")
    weights = plan.weights(timesteps)
    sizes = torch.tensor(held.image_shape), torch.tensor(held.image_shape) + torch.tensor([0, 2, 2]) * held.padding
    dimensions, seen = (int(size.prod()) for size in sizes)
    prior = torch.cat([next(iter(bounds.values())).prior(held.as_network_sees(some)[0]) for some in rows.split(256)])
    table, by_timestep = [], {}
    for number, variance in enumerate(bounds):
        figures = b.bound_figures(
            found_rows, timesteps, terms[:, number], weights, prior, num_timesteps, seen / dimensions
        )
        firsts = [first for first in FIRSTS if first <= num_timesteps]
        lasts = [*(first - 1 for first in firsts[1:]), num_timesteps]
        table.append(
            {
                "variance_type": variance,
                "value": figures.value,
                "standard_error": figures.standard_error,
                "prior": figures.prior,
                "decoder": figures.between(1, 1),
                "parts": [
                    {"from": first, "to": last, "value": figures.between(first, last)}
                    for first, last in zip(firsts, lasts, strict=True)
                ],
            }
        )
        by_timestep[variance] = figures.terms
    calibrated = b.calibration(timesteps, loss, weights, b.summed_bias(results), num_timesteps)
    edges = [math.ceil(i * num_timesteps / b.BIAS_BINS) for i in range(b.BIAS_BINS + 1)]
    metrics = {
        "bound": {
            "split": held.split,
            "num_images": len(rows),
            "dimensions": dimensions,
            "timesteps_per_image": context.options.timesteps_per_image or num_timesteps,
            "seed": context.options.seed,
            "dtype": "float64" if context.options.float64 else str(context.pipeline.unet.dtype).removeprefix("torch."),
            "rows": table,
        },
        "calibration": {
            "split": held.split,
            "rows": [
                {"from": edges[i] + 1, "to": edges[i + 1], "loss": loss, "bias": bias, "chance": chance}
                for i, (loss, bias, chance) in enumerate(
                    zip(calibrated.loss, calibrated.bias, calibrated.chance, strict=True)
                )
                if not math.isnan(loss)
            ],
        },
    }
    return BoundResult(metrics, by_timestep)


# --- Samples ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleResult:
    """Attributes:
    metrics (`dict`): `quality`, `memorisation`, `classes` and `colour` of metrics.json.
    nearness (`dict[str, list[Nearness]]`): by space, of the samples and of the unseen images.
    pixels (`torch.Tensor` of `uint8`, shape (n, C, H, W)): the samples that were compared.
    held_pixels (`torch.Tensor`): the unseen images.
    """

    metrics: dict
    nearness: dict[str, list[Nearness]]
    pixels: torch.Tensor
    held_pixels: torch.Tensor


def measure_samples(context: Context) -> SampleResult | None:
    """The quality of samples beside that of real images and of noise, copies, classes and colours."""
    options, extractor = context.options, context.extractor
    train, _ = context.train_features
    held, held_logits = context.held_features
    drawing = context.drawing(options.num_samples)
    stages = [drawing.stage("samples", context.settings, keep_pixels=True), drawing.noise_stage()]
    results = [context.work.run(stage) for stage in stages]
    if not context.is_main:
        return None
    names = ("pixels", "features", "logits") if held_logits is not None else ("pixels", "features")
    pixels, features, *logits = results[0].joined(*names)
    (noise,) = results[1].joined("features")
    chosen = spread_rows(len(held), options.num_samples)  # as many unseen images as samples, if there are
    some, split, held_split = held[chosen], context.train.split, context.held.split
    sets = [("samples", features, split, train), ("samples", features, held_split, held),
            (held_split, some, split, train), *_left_out(context, train, len(some)), ("noise", noise, split, train)]  # fmt: skip
    if len(some) < len(features):  # FID falls with the number: as many samples as there are unseen images, too
        sets.insert(2, ("samples", features[spread_rows(len(features), len(some))], split, train))
    rows = [
        {"images": name, "num_images": len(fake), "against": against, "num_reference": len(real)}
        | distances_of(real, fake, options)
        for name, fake, against, real in sets
    ]
    metrics: dict = {"quality": {"rows": rows, **judged_by(context, context.settings, options.num_samples)}}
    if extractor.knows_imagenet:
        score, spread = inception_score(logits[0], options.seed)
        real_score, _ = inception_score(held_logits[chosen], options.seed)
        metrics["quality"]["inception_score"] = {"value": score, "spread": spread, "real": real_score}
    if context.pipeline.num_classes is not None:
        metrics["classes"] = _class_figures(context, drawing.labels, features, logits[0] if logits else None)
    train_rows = context.train.rows(options.reference_images)
    held_rows = context.held.rows(options.reference_images)[chosen[spread_rows(len(chosen), LARGEST_COMPARED)]]
    shown = spread_rows(len(features), LARGEST_COMPARED)
    pixels_shown, held_pixels = pixels[shown], context.held.as_bytes(held_rows)

    def training_pixels() -> Iterator[torch.Tensor]:
        size = max(1, min(CHUNK_VALUES // pixels[0].numel(), CHUNK_VALUES // CHUNK))
        return (context.train.as_bytes(rows).flatten(1) for rows in train_rows.split(size))

    found = {
        "pixels": [nearness(each.flatten(1), training_pixels(), 255) for each in (pixels_shown, held_pixels)],
        "features": [
            nearness(each, train.split(CHUNK))
            for each in (features[shown], some[spread_rows(len(some), LARGEST_COMPARED)])
        ],
    }
    metrics["memorisation"] = [
        {
            "space": space,
            "num_samples": len(near[0].ratios),
            "num_unseen": len(near[1].ratios),
            "split": context.held.split,
        }
        | asdict(judge_copying(*near))
        for space, near in found.items()
    ]
    metrics["colour"] = _colours(context, pixels, train_rows)
    return SampleResult(metrics, found, pixels_shown, held_pixels)


def _left_out(context: Context, train: torch.Tensor, count: int) -> list[tuple]:
    """Features of so many training images, with classes in the proportions of all, as samples have them, against those of the others."""
    if len(train) < 2 * count:
        return []
    chosen = spread_rows(len(train), count)
    if (labels := context.train.data.labels) is not None:
        chosen = labels[context.train.rows(context.options.reference_images)].argsort(stable=True)[chosen]
    others = torch.ones(len(train), dtype=torch.bool)
    others[chosen] = False
    return [(context.train.split, train[chosen], context.train.split, train[others])]


def distances_of(real: torch.Tensor, fake: torch.Tensor, options) -> dict:
    """FID, KID, precision, recall, density and coverage, by the keys of metrics.json."""
    fid = {} if options.no_fid else {"fid": frechet_distance(real, fake)}
    real, fake = (each[spread_rows(len(each), LARGEST_COMPARED)] for each in (real, fake))
    kid, error = kernel_distance(real, fake)
    same = min(len(real), len(fake))  # precision and the others compare sets of the same size
    manifolds = compare_manifolds(
        real[spread_rows(len(real), same)], fake[spread_rows(len(fake), same)], options.neighbors
    )
    return fid | {"kid": kid, "kid_standard_error": error, "num_compared": same} | asdict(manifolds)


def judged_by(context: Context, settings: SamplingSettings, count: int) -> dict:
    """What stands beside every figure of samples."""
    return {
        "num_samples": count,
        "seed": context.options.seed,
        "k": context.options.neighbors,
        **stored_settings(settings),
        "extractor": context.extractor.facts.name,
        "extractor_sha256": context.extractor.facts.sha256,
        "resize": context.extractor.facts.resize,
    }


@lru_cache(maxsize=1)
def class_judge(context: Context) -> ClassJudge:
    """Made once: a linear probe takes a while."""
    features = context.train_features[0]
    labels = context.train.data.labels[context.train.rows(context.options.reference_images)]
    return ClassJudge(context.extractor, context.train.data.class_names, features, labels)


def _class_figures(context: Context, labels: torch.Tensor, features, logits) -> dict:
    """The share of samples with the class that was asked for, and of real images with their own, over all and by class."""
    judge, count = class_judge(context), context.pipeline.num_classes
    overall, each = agreement(judge.classes(features, logits), labels, count)
    held_labels = context.held.data.labels[context.held.rows(context.options.reference_images)]
    real_overall, real_each = agreement(judge.classes(*context.held_features), held_labels, count)
    rows = [
        {"name": name, "samples": drawn, "real": real}
        for name, drawn, real in zip(context.train.data.class_names, each, real_each, strict=True)
    ]
    return {
        "judge": judge.name, "samples": overall, "real": real_overall, "split": context.held.split,
        "num_real": len(held_labels), "rows": rows,
    }  # fmt: skip


def _colours(context: Context, pixels: torch.Tensor, train_rows: torch.Tensor) -> dict:
    """Mean and standard deviation of each channel over all pixels, in grey levels of 0 to 255, and the drift of the mean."""
    ours = _moments(pixels.split(CHUNK))
    real = _moments(context.train.as_bytes(some) for some in train_rows.split(CHUNK))
    rows = []
    for channel, (own, other) in enumerate(zip(ours, real, strict=True)):
        error = math.sqrt(sum(mean.var().item() / len(mean) for mean, _ in (own, other)))
        mean, real_mean = (each.mean().item() for each, _ in (own, other))
        std, real_std = (
            math.sqrt(max(squares.mean().item() - each.mean().item() ** 2, 0)) for each, squares in (own, other)
        )
        rows.append({"channel": channel, "mean": mean, "real_mean": real_mean, "standard_error": error,
                     "std": std, "real_std": real_std})  # fmt: skip
    return {"rows": rows}


def _moments(images: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each channel, of each image the mean of its pixels, which are not independent, and that of their squares."""
    found = [(some.double().mean(dim=(2, 3)), some.double().square().mean(dim=(2, 3))) for some in images]
    means, squares = (torch.cat(parts) for parts in zip(*found, strict=True))
    return list(zip(means.T, squares.T, strict=True))


# --- Tables ---------------------------------------------------------------------------------------------------------------


def measure_table(context: Context, name: str, settings: list[SamplingSettings]) -> dict | None:
    """A row of figures for each of some settings, with `study_samples` samples each; `None` but in the main process."""
    options = context.options
    drawing = context.drawing(options.study_samples)
    results = [context.work.run(drawing.stage(_stage_name(name, each), each)) for each in settings]
    train, _ = context.train_features
    if not context.is_main:
        return None
    is_conditional = context.pipeline.num_classes is not None
    judge, rows = class_judge(context) if is_conditional else None, []
    for each, result in zip(settings, results, strict=True):
        has_logits = context.train_features[1] is not None
        features, *logits = result.joined(*(("features", "logits") if has_logits else ("features",)))
        row = stored_settings(each) | distances_of(train, features, options)
        if judge is not None:
            found = judge.classes(features, logits[0] if logits else None)
            row["class_fidelity"] = agreement(found, drawing.labels, context.pipeline.num_classes)[0]
        rows.append(row)
    facts = judged_by(context, settings[0], options.study_samples)
    kept = ("num_samples", "seed", "k", "extractor", "extractor_sha256", "resize")
    return {key: facts[key] for key in kept} | {
        "against": context.train.split, "num_reference": len(train), "rows": rows,
    }  # fmt: skip


def _stage_name(table: str, settings: SamplingSettings) -> str:
    last = f"w_{settings.guidance_scale:g}" if table == "guidance" else f"{settings.num_inference_steps}_steps"
    return f"{settings.sampler.replace('+', 'p')}_{last}"


def steps_settings(context: Context) -> list[SamplingSettings]:
    """The rows of the table by steps: every sampler at every number of steps that it can take."""
    options, own = context.options, context.settings
    samplers = options.samplers or list(dict.fromkeys([own.sampler, "ddpm"]))
    found = []
    for sampler in samplers:
        for steps in sorted(set(options.steps or STEPS)):
            given = {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": options.guidance_scale,
                     "guidance_interval": options.guidance_interval}  # fmt: skip
            try:
                found.append(context.resolve(**given))
            except ValueError as error:
                if options.steps is not None:
                    raise ValueError(f"`--steps` has {steps} for {sampler!r}: {error}") from error
    return list(dict.fromkeys(found))


def guidance_settings(context: Context) -> list[SamplingSettings]:
    """The rows of the table by guidance."""
    own, interval = asdict(context.settings), context.options.guidance_interval
    return [
        context.resolve(**own | {"guidance_scale": scale, "guidance_interval": None if scale == 1 else interval})
        for scale in sorted(set(context.options.guidance))
    ]
