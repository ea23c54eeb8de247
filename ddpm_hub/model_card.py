"""The model card: README.md of a saved model folder, from `model_card.md` and the folder's own files.

Every figure in a card was read from a file or computed from the stored schedule; what the files do not say, the card
does not say either. Rendering twice gives the same text.
"""

import html
import inspect
import json
import math
import os
import re
import warnings
from pathlib import Path
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ddpm_hub import __version__

from .model_folder import ModelFolder, last_part, read_model_folder
from .shared_files import shared_file

TASK = "unconditional-image-generation"
SAMPLES = 4  # that the snippets draw
LARGEST_LISTING = 20  # of class names
SOLVER_STEPS = 20


def render_card(folder: str | Path, repo_id: str | None = None) -> ModelCard:
    """The card of a folder that `DDPMHubPipeline.save_pretrained` or a training run wrote.

    Args:
        folder (`str` or `Path`): the model. `config.yaml`, `metrics.json`, `samples/*.png` and plots are used where there
            are any.
        repo_id (`str`, *optional*): `user/name` on the Hub, for the snippets; by default they name the folder, and leave out
            the revision that only a repository has.

    Raises:
        FileNotFoundError: naming the file that the model lacks.
        ValueError: naming a damaged file and what is wrong in it.
    """
    model = read_model_folder(folder)
    if repo_id is not None:
        validate_repo_id(repo_id)
    scheduler = _scheduler(model, Path(folder))
    data = _metadata(model, repo_id or model.name, Path(folder))
    return ModelCard.from_template(
        data,
        template_path=str(shared_file("model_card.md")),
        title=plain(repo_id.split("/")[-1] if repo_id else model.name),
        on_hub=repo_id is not None,
        repo=_python_text(repo_id or model.name),
        version=__version__,
        images=_images(model),
        facts=_facts(model, scheduler),
        grid=_grid(model),
        use=_use(model, scheduler),
        **_data_and_training(model),
        evaluation=[e for e in model.metrics.get("evaluation", []) if "value" in e],
        evaluation_table=_evaluation_table(model.metrics),
        speed_table=_speed_table(model),
        sampling_quality=_sampling_quality(model),
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


# --- Text that comes from files, made harmless --------------------------------------------------------------------------


def plain(text: str) -> str:
    """Text on one line that Markdown, its tables, HTML and formulas take for nothing but text."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    escaped = re.sub(r"[`*_\[\]#~{}]", r"\\\g<0>", html.escape(words.replace("\\", "\0"), quote=False))
    return escaped.replace("\0", "&#92;").replace("|", "&#124;").replace("$", "&#36;")


def number(value: float) -> str:
    """An integer with its thousands apart; at most six digits of anything else."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def machine(facts: dict) -> str:
    """What a machine is called, how much of it was used, and by which torch."""
    counts = ((facts.get(key), key.removesuffix("s")) for key in ("threads", "devices"))
    parts = [plain(facts["name"])] if "name" in facts else []
    parts += [f"{count} {unit}{'s' if count > 1 else ''}" for count, unit in counts if count]
    return ", ".join(parts + ([f"torch {plain(facts['torch'])}"] if "torch" in facts else []))


def _python_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _listing(names: list[str]) -> str:
    listed = ", ".join(plain(name) for name in names[:LARGEST_LISTING])
    return listed + (f" and {len(names) - LARGEST_LISTING:,} more" if len(names) > LARGEST_LISTING else "")


def _table(columns: dict[str, list[str]]) -> str:
    """A Markdown table of the columns that hold anything; no table without rows."""
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [filled.keys(), ["---"] * len(filled), *zip(*filled.values(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if filled else ""


# --- The parts of the card ----------------------------------------------------------------------------------------------


def _metadata(model: ModelFolder, name: str, folder: Path) -> ModelCardData:
    training = model.metrics.get("training", {})
    dataset = _dataset(model)
    if training.get("dataset_on_hub") and dataset:
        try:
            validate_repo_id(dataset)
        except HFValidationError as error:
            raise ValueError(f"{str(folder / 'metrics.json')!r} is damaged: training.dataset: {error}") from error
    arguments = (
        "num_samples",
        "seed",
        "sampler",
        "num_inference_steps",
        "eta",
        "guidance_scale",
        "extractor",
        "reference",
    )
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=model.config.get("split"),
            metric_type=entry["type"],
            metric_name=entry["name"],
            metric_value=entry["value"],
            metric_args={key: entry[key] for key in arguments if key in entry} or None,
        )
        for entry in model.metrics.get("evaluation", [])
        if "value" in entry and dataset  # the Hub takes no result without a data set
    ]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=TASK,
        license=model.config.get("license"),
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
        rows.append(("Classes", f"{len(model.class_names)}: {_listing(model.class_names)}"))
    rows += [
        ("Network", f"`UNet2DModel`, {model.num_parameters:,} parameters, {model.dtype}"),
        (
            "Prediction, schedule",
            f"`{config.prediction_type}`, `{_schedule_name(scheduler)}` with T = {len(scheduler)}",
        ),
    ]
    if model.sampling:
        rows.append(("Sampled by default", _steps(model.sampling)))
    if dataset := _dataset(model):
        count = f", {training['num_images']:,} images" if "num_images" in training else ""
        rows.append(("Training data", plain(dataset) + count))
    for entry in model.metrics.get("evaluation", []):
        if "value" in entry:
            rows.append((plain(entry["name"]), _value_and_reference(entry)))
    return rows


def _value_and_reference(entry: dict) -> str:
    reference = entry.get("reference", {})
    if "name" not in reference or "value" not in reference:
        return number(entry["value"])
    return f"{number(entry['value'])} ({plain(reference['name'])}: {number(reference['value'])})"


def _grid(model: ModelFolder) -> dict | None:
    if model.sample_grid is None:
        return None
    facts, caption = model.metrics.get("samples", {}), "Samples"
    if facts.get("file") == model.sample_grid:  # and not a later or an earlier grid
        if "num_samples" in facts:
            caption = f"{facts['num_samples']:,} samples"
        caption += ", a class in each column" if facts.get("class_in_each_column") else ""
        if "num_inference_steps" in facts:
            caption += f"; {_steps(facts)}"
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
        "classes": _listing(model.class_names),
        "num_classes": len(model.class_names),
        "loss_curve": "loss_curve.png" in plots,
        "plots": [(quote(os.fsencode(path)), title) for path, title in plots.items() if path != "loss_curve.png"],
    }


def _evaluation_table(metrics: dict) -> str:
    entries = [entry for entry in metrics.get("evaluation", []) if "value" in entry]

    def figures(key: str) -> list[str]:
        return [number(entry[key]) if key in entry else "" for entry in entries]

    return _table(
        {
            "Metric": [plain(entry["name"]) for entry in entries],
            "Value": [_value_and_reference(entry) for entry in entries],
            "Samples": figures("num_samples"),
            "Drawn with": [_steps(e) if "num_inference_steps" in e else "" for e in entries],
            "First seed": [str(entry.get("seed", "")) for entry in entries],
            "Judged by": [plain(entry.get("extractor", "")) for entry in entries],
        }
    )


def _sampling_quality(model: ModelFolder) -> dict | None:
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
        columns["Sampler"].append(f"`{sampler}`")
        columns["Variance"].append("" if variance == "none" else f"`{variance}`")
        for n in steps:
            text = cells.get((sampler, variance, n), "")
            is_own = (sampler, n) == chosen and variance in ("none", model.scheduler.get("variance_type"))
            columns[f"{n} steps"].append(f"**{text}**" if is_own and text else text)
    return {
        "description": plain(study.get("description", "")),
        "num_samples": study.get("num_samples"),
        "floor": _distance(study["floor"]) if "floor" in study else None,
        "table": _table(columns),
    }


def _distance(row: dict) -> str:
    return f"{1000 * row['value']:.2f} ± {1000 * row['standard_error']:.2f}"


def _steps(drawn: dict) -> str:
    """How many steps, and the sampler, η and guidance of samples, where they are not those of a plain DDPM."""
    sampler = drawn.get("sampler", "ddpm")
    count = drawn.get("num_inference_steps")
    parts = [] if count is None else [f"{number(count)} step{'s' if count > 1 else ''}"]
    parts += [f"`{sampler}`"] if sampler != "ddpm" else []
    parts += [f"η = {number(drawn['eta'])}"] if drawn.get("eta", 1) != 1 and sampler == "ddpm" else []
    parts += [f"guidance {number(drawn['guidance_scale'])}"] if drawn.get("guidance_scale", 1) != 1 else []
    return ", ".join(parts) or "all steps"


def _speed_table(model: ModelFolder) -> str:
    training = {"what": "training", "batch_size": model.config.get("batch_size"), **model.metrics.get("training", {})}
    rows = [row for row in (training, *model.metrics.get("speed", [])) if "images_per_second" in row]

    def figures(key: str) -> list[str]:
        return [number(row[key]) if row.get(key) is not None else "" for row in rows]

    return _table(
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
    channels, height, width = model.image_shape
    learned = scheduler.config.variance_type in ("learned", "learned_range")
    solver = _solver_arguments(model.scheduler, scheduler)
    own = model.sampling
    is_ddpm = own.get("sampler", "ddpm") == "ddpm" and own.get("eta", 1) == 1
    steps = possible_steps(scheduler, own.get("num_inference_steps", 100) if is_ddpm else 100)
    labels = [k % len(model.class_names) for k in range(SAMPLES)] if model.class_names else None
    is_picture = channels in (1, 3, 4)
    output = [] if is_picture and model.unet.get("out_channels") == channels else ['output_type="np"']
    arguments = [f"num_inference_steps={steps}"]
    subject = f"class_labels={labels}" if labels else f"batch_size={SAMPLES}"
    return {
        "labels": labels,
        # What is stored with the model need not be said.
        "arguments": ", ".join([subject, *([] if "num_inference_steps" in own else arguments), *output]),
        "stock_arguments": ", ".join([f"batch_size={SAMPLES}", *arguments, *output]),
        "batch_size": SAMPLES,
        "solver_steps": min(SOLVER_STEPS, len(scheduler)),
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
