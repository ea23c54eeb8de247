"""The model card: README.md of a saved model folder, from `model_card.md` and the folder's own files.

Every figure in a card was read from a file or computed from the stored schedule; what the files do not say, the card
does not say either. Rendering twice gives the same text.
"""

import inspect
import math
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ddpm_hub import __version__

from .card_text import listing, machine, number, plain, python_text
from .evaluation_tables import (
    drawn_with,
    evaluation_sections,
    evaluation_table,
    sampling_quality,
    speed_table,
    value_and_reference,
)
from .metrics_file import SAMPLING_FORM
from .model_folder import ModelFolder, last_part, read_model_folder
from .shared_files import shared_file

TASK = "unconditional-image-generation"
SAMPLES = 4  # that the snippets draw
SOLVER_STEPS = 20


def render_card(folder: str | Path, repo_id: str | None = None, name: str | None = None) -> ModelCard:
    """The card of a folder that `DDPMHubPipeline.save_pretrained` or a training run wrote.

    Args:
        folder (`str` or `Path`): the model. `config.yaml`, `metrics.json`, `samples/*.png` and plots are used where there
            are any.
        repo_id (`str`, *optional*): `user/name` on the Hub, for the snippets; by default they name the folder, and leave out
            the revision that only a repository has.
        name (`str`, *optional*): of the folder, where it is to be told by another than its own.

    Raises:
        FileNotFoundError: naming the file that the model lacks.
        ValueError: naming a damaged file and what is wrong in it.
    """
    model = read_model_folder(folder)
    model = model if name is None else replace(model, name=name)
    if repo_id is not None:
        validate_repo_id(repo_id)
    scheduler = _scheduler(model, Path(folder))
    data = _metadata(model, repo_id or model.name, Path(folder))
    return ModelCard.from_template(
        data,
        template_path=str(shared_file("model_card.md")),
        title=plain(repo_id.split("/")[-1] if repo_id else model.name),
        on_hub=repo_id is not None,
        repo=python_text(repo_id or model.name),
        version=__version__,
        images=_images(model),
        facts=_facts(model, scheduler),
        grid=_grid(model),
        use=_use(model, scheduler),
        **_data_and_training(model),
        evaluation=[e for e in model.metrics.get("evaluation", []) if "value" in e],
        evaluation_table=evaluation_table(model.metrics),
        evaluation_sections=evaluation_sections(model.metrics),
        speed_table=speed_table(model),
        sampling_quality=sampling_quality(model),
        plain=plain,
        number=number,
        machine=machine,
        **_schedule(scheduler),
    )


def write_card(folder: str | Path, repo_id: str | None = None) -> Path:
    """Writes [`render_card`]'s card as README.md, whole or not at all, and returns its path."""
    path = Path(folder) / "README.md"
    content = render_card(folder, repo_id).content
    partial = path.with_name("README.md.partial")
    partial.write_text(content.rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    os.replace(partial, path)
    return path


# --- The parts of the card ----------------------------------------------------------------------------------------------


def _metadata(model: ModelFolder, name: str, folder: Path) -> ModelCardData:
    training = model.metrics.get("training", {})
    dataset = _dataset(model)
    if training.get("dataset_on_hub") and dataset:
        try:
            validate_repo_id(dataset)
        except HFValidationError as error:
            raise ValueError(f"{str(folder / 'metrics.json')!r} is damaged: training.dataset: {error}") from error
    arguments = ("num_samples", "seed", *SAMPLING_FORM, "extractor", "reference")
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=entry.get("dataset", dataset),
            dataset_name=entry.get("dataset", dataset),
            dataset_split=entry.get("split", model.config.get("split")),
            metric_type=entry["type"],
            metric_name=entry["name"],
            metric_value=entry["value"],
            metric_args={key: entry[key] for key in arguments if key in entry} or None,
        )
        for entry in model.metrics.get("evaluation", [])
        if "value" in entry and entry.get("dataset", dataset)  # the Hub takes no result without a data set
    ]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=TASK,
        license=model.config.get("license"),
        base_model=model.config.get("init_from") if training.get("init_from_on_hub") else None,
        tags=["ddpm", "ddpm_hub", "diffusion", "image-generation", *["class-conditional"] * bool(model.class_names)],
        datasets=[dataset] if training.get("dataset_on_hub") and dataset else None,
        model_name=name.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _dataset(model: ModelFolder) -> str | None:
    """The data set's id on the Hub, or the name of its folder."""
    training = model.metrics.get("training", {})
    name = training.get("dataset", model.config.get("dataset_name"))
    return name if name is None or training.get("dataset_on_hub") else last_part(name)


def _images(model: ModelFolder) -> str:
    channels, height, width = model.image_shape
    kind = {1: "greyscale ", 3: "RGB ", 4: "RGBA "}.get(channels, f"{channels}-channel ")
    return f"{width} × {height} {kind}images"


def _facts(model: ModelFolder, scheduler) -> list[tuple[str, str]]:
    """The rows of the table at the top."""
    training, config = model.metrics.get("training", {}), scheduler.config
    rows = [("Images", _images(model).removesuffix(" images"))]
    if model.class_names:
        rows.append(("Classes", f"{len(model.class_names)}: {listing(model.class_names)}"))
    rows += [
        ("Network", f"`UNet2DModel`, {model.num_parameters:,} parameters, {model.dtype}"),
        (
            "Prediction, schedule",
            f"`{config.prediction_type}`, `{_schedule_name(scheduler)}` with T = {len(scheduler)}",
        ),
    ]
    if model.sampling:
        rows.append(("Sampled by default", drawn_with(model.sampling)))
    if dataset := _dataset(model):
        count = f", {training['num_images']:,} images" if "num_images" in training else ""
        rows.append(("Training data", plain(dataset) + count))
    for entry in model.metrics.get("evaluation", []):
        if "value" in entry:
            rows.append((plain(entry["name"]), value_and_reference(entry)))
    return rows


def _grid(model: ModelFolder) -> dict | None:
    if model.sample_grid is None:
        return None
    facts, caption = model.metrics.get("samples", {}), "Samples"
    if facts.get("file") == model.sample_grid:  # and not a later or an earlier grid
        if "num_samples" in facts:
            caption = f"{facts['num_samples']:,} samples"
        caption += ", a class in each column" if facts.get("class_in_each_column") else ""
        if "num_inference_steps" in facts:
            caption += f"; {drawn_with(facts)}"
        if "seed" in facts and "num_samples" in facts:
            caption += f", seeds {facts['seed']} to {facts['seed'] + facts['num_samples'] - 1}; not selected"
    return {"path": quote(os.fsencode(model.sample_grid)), "caption": caption}


def _data_and_training(model: ModelFolder) -> dict:
    config_yaml = yaml.safe_dump(model.config, sort_keys=False, allow_unicode=True) if model.config else ""
    longest = max((len(run) for run in re.findall(r"`+", config_yaml)), default=0)
    plots = {path: plain(Path(path).stem.replace("_", " ")) for path in model.plots}
    return {
        "training": model.metrics.get("training", {}),
        "config": model.config,
        "config_yaml": config_yaml,
        "fence": "`" * max(3, longest + 1),  # longer than any in the block
        "dataset": plain(_dataset(model) or ""),
        "classes": listing(model.class_names),
        "num_classes": len(model.class_names),
        "loss_curve": "loss_curve.png" in plots,
        "plots": [(quote(os.fsencode(path)), title) for path, title in plots.items() if path != "loss_curve.png"],
    }


# --- The schedule and how to use it -------------------------------------------------------------------------------------


def _scheduler(model: ModelFolder, folder: Path):
    """The stored scheduler, as `DDPMHubScheduler` reads it."""
    from .scheduling_ddpm_hub import DDPMHubScheduler

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ᾱ_T, which the card itself speaks of
            return DDPMHubScheduler.from_config(model.scheduler)
    except (TypeError, ValueError) as error:
        file = folder / "scheduler" / "scheduler_config.json"
        raise ValueError(f"{str(file)!r} is damaged: {error}") from error


def _schedule_name(scheduler) -> str:
    return "trained_betas" if scheduler.config.trained_betas is not None else scheduler.config.beta_schedule


def _schedule(scheduler) -> dict:
    """What the equations need to know."""
    from .ddpm_noise_schedules import LARGEST_FINAL_ALPHA_BAR
    from .scheduling_ddpm_hub import VARIANCE_TYPES

    final = scheduler.alphas_cumprod[-1].item()
    return {
        "scheduler": scheduler.config,
        "schedule_name": _schedule_name(scheduler),
        "variance": VARIANCE_TYPES[scheduler.config.variance_type],
        "num_train_timesteps": len(scheduler),
        "first_beta": f"{scheduler.betas[0].item():.4g}",
        "last_beta": f"{scheduler.betas[-1].item():.4g}",
        "final_alpha_bar": f"{final:.3g}",
        "data_left": f"{100 * math.sqrt(final):.2g} %",
        "ends_in_noise": final <= LARGEST_FINAL_ALPHA_BAR * (1 + 1e-9),
    }


def _use(model: ModelFolder, scheduler) -> dict:
    """The arguments of the snippets, such that they run and suit the schedule."""
    from .ddpm_fast_solvers import ADDS_NOISE

    channels, height, width = model.image_shape
    learned = scheduler.config.variance_type in ("learned", "learned_range")
    solver = _solver_arguments(model.scheduler, scheduler)
    own = model.sampling
    is_ddpm = own.get("sampler", "ddpm") == "ddpm" and own.get("eta", 1) == 1
    steps = possible_steps(scheduler, own.get("num_inference_steps", 100) if is_ddpm else 100)
    labels = [k % len(model.class_names) for k in range(SAMPLES)] if model.class_names else None
    is_picture = channels in (1, 3, 4)
    output = [] if is_picture else ['output_type="np"']
    # DDPMPipeline makes pictures of all channels of the network.
    stock_output = output if model.unet.get("out_channels") == channels else ['output_type="np"']
    arguments = [f"num_inference_steps={steps}"]
    subject = f"class_labels={labels}" if labels else f"batch_size={SAMPLES}"
    return {
        "labels": labels,
        # What is stored with the model need not be said.
        "arguments": ", ".join([subject, *([] if "num_inference_steps" in own else arguments), *output]),
        "stock_arguments": ", ".join([f"batch_size={SAMPLES}", *arguments, *stock_output]),
        "batch_size": SAMPLES,
        "solver_steps": min(SOLVER_STEPS, len(scheduler)),
        "solver_of_its_own": None if own.get("sampler", "ddpm") == "ddpm" or own.get("eta") else own["sampler"],
        "adds_noise": own.get("sampler") == ADDS_NOISE,
        "guided": own.get("guidance_scale", 1) != 1,
        "loop_steps": steps if solver is None else min(SOLVER_STEPS, len(scheduler)),
        "saves": not output,
        "shape": f"{SAMPLES}, {channels}, {height}, {width}",
        # UNet2DModel demands classes and DDPMPipeline passes none; nor can it use a learned variance in every form.
        "loop": bool(labels) or learned,
        "channels": channels if learned else None,
        "solver": solver,
        "stock_variance": _stock_variance(scheduler.config.variance_type),
        "sigmoid": scheduler.config.beta_schedule == "sigmoid" and scheduler.config.trained_betas is None,
    }


def _stock_variance(variance_type: str | None) -> str:
    """The argument with which diffusers' DDPMScheduler knows the variance; empty where it reads the stored one rightly."""
    if variance_type in ("fixed_small", "fixed_small_log", "fixed_large"):
        return ""
    return f'variance_type="{"fixed_large" if variance_type == "fixed_large_log" else "fixed_small"}"'


def possible_steps(scheduler, wanted: int) -> int:
    """The number of steps that is wanted, if the schedule can be cut to it; else all."""
    wanted = min(wanted, len(scheduler))
    try:
        scheduler.set_timesteps(wanted)
    except ValueError:
        return len(scheduler)
    return wanted


def _solver_arguments(stored: dict, scheduler) -> list[str] | None:
    """What [`fast_solver`] sets in diffusers' DPM-Solver++ beside what is stored; `None` where it has no such solver."""
    from diffusers import DPMSolverMultistepScheduler

    from .ddpm_fast_solvers import fast_solver

    learned = stored.get("variance_type") in ("learned", "learned_range")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fixed = type(scheduler).from_config(scheduler.config, variance_type="fixed_small") if learned else scheduler
            config = fast_solver(fixed, "dpm++").config
    except ValueError:
        return None
    parameters = inspect.signature(DPMSolverMultistepScheduler).parameters
    without = {name: stored.get(name, parameter.default) for name, parameter in parameters.items()}
    settings = {
        name: config[name]
        for name, value in without.items()
        if config[name] != value and name not in ("trained_betas", "variance_type")  # the template's, and of no effect
    }
    if learned:  # else the solver would split what it is given
        settings["variance_type"] = "fixed_small"
    return [f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in settings.items()]
