"""The API, for `gradio_client` and as MCP tools: what the tabs do, by name, with plain arguments and results.

Every value is checked as it is on the page; a refusal is one sentence. Images are given and taken as files.
"""

import math
from pathlib import Path
from typing import Any

import drawing
import editing
import equations_document
import gradio as gr
import numpy as np
import served_models
from answers import answering
from both_languages import Both
from drawing import Drawing
from forward_facts import jump, scheduler_of, small, walk
from gradio import FileData
from model_facts import model_facts
from page import NETWORK
from pictures import as_image, pixels_of
from posterior_facts import posterior_facts
from request_checks import InvalidRequestError, choice
from schedule_facts import schedule_facts
from visitor_files import opened_image, result_file

LIGHT_LIMIT = {"concurrency_id": "light", "concurrency_limit": 8}


def add_endpoints() -> None:
    """Adds the endpoints to the page that is being built."""
    limits = {name: NETWORK[name] for name in ("concurrency_id", "concurrency_limit")}
    for function in (generate, inpaint, img2img, interpolate, trajectory):
        gr.api(function, api_name=function.__name__, **limits)
    for function in (forward, posterior, schedule, equations, models, model):
        gr.api(function, api_name=function.__name__, **LIGHT_LIMIT)


def generate(
    class_name: str = "any",
    count: int = 1,
    seed: int = 0,
    model: str | None = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
) -> tuple[list[FileData], dict[str, Any]]:
    """Draws new images with a diffusion model. The same arguments draw the same images.

    Args:
        class_name: one of the model's classes (see the endpoint models), or "any".
        count: how many images, 1 to 16.
        seed: 0 to 4294967295; image i comes from seed + i alone.
        model: the title of a served model; by default the first one.
        sampler: "ddpm", "ddim", "dpm++", "sde-dpm++" or "unipc"; by default the model's own.
        num_steps: denoising steps, from 1 to the model's T; by default the model's own.
        guidance: strength of classifier-free guidance, 0 to 10; 1 is none; by default the model's own.

    Returns:
        The images as PNG files in their true size, and the settings that drew them.
    """
    with answering("generate", on_page=False) as settings:
        return _drawn(drawing.image_drawing(model, class_name, count, sampler, num_steps, guidance, seed), settings)


def inpaint(
    image: FileData,
    mask: FileData,
    class_name: str = "any",
    count: int = 1,
    seed: int = 0,
    model: str | None = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    resamplings: int = 3,
    guidance: float | None = None,
) -> tuple[list[FileData], dict[str, Any]]:
    """Paints a part of an image anew and keeps the rest (RePaint).

    Args:
        image: the known pixels; its middle is fitted to the model's size.
        mask: a picture that is white where to paint and black where to keep.
        class_name: one of the model's classes, or "any".
        count: how many ways to paint it, 1 to 16.
        seed: 0 to 4294967295.
        model: the title of a served model; by default the first one.
        sampler: "ddpm" or "ddim".
        num_steps: denoising steps, from 1 to the model's T.
        resamplings: how often each stretch of steps is taken, 1 to 10.
        guidance: strength of classifier-free guidance, 0 to 10; 1 is none.

    Returns:
        The images as PNG files, and the settings that drew them.
    """
    with answering("inpaint", on_page=False) as settings:
        size = served_models.pipeline(model).image_size
        marked = editing.mask_of_image(opened_image(mask, Both("The mask", "遮罩")), size)
        asked = editing.inpainting_drawing(
            model, opened_image(image), marked, class_name, count, sampler, num_steps, resamplings, guidance, seed
        )
        return _drawn(asked, settings)


def img2img(
    image: FileData,
    strength: float = 0.5,
    class_name: str = "any",
    count: int = 1,
    seed: int = 0,
    model: str | None = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
) -> tuple[list[FileData], dict[str, Any]]:
    """Adds noise to an image and draws it anew from there (SDEdit).

    Args:
        image: what to begin with; its middle is fitted to the model's size.
        strength: how much noise, 0.01 to 1; at 1 nothing of the image is left.
        class_name: one of the model's classes, or "any".
        count: how many images, 1 to 16.
        seed: 0 to 4294967295.
        model: the title of a served model; by default the first one.
        sampler: "ddpm", "ddim", "dpm++", "sde-dpm++" or "unipc"; by default the model's own.
        num_steps: denoising steps, from 1 to the model's T.
        guidance: strength of classifier-free guidance, 0 to 10; 1 is none.

    Returns:
        The images as PNG files, and the settings that drew them.
    """
    with answering("img2img", on_page=False) as settings:
        asked = editing.img2img_drawing(
            model, opened_image(image), strength, class_name, count, sampler, num_steps, guidance, seed
        )
        return _drawn(asked, settings)


def interpolate(
    first_seed: int,
    second_seed: int,
    class_name: str = "any",
    count: int = 8,
    model: str | None = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
) -> tuple[list[FileData], dict[str, Any]]:
    """Draws a row of images that lead from one seed to another.

    Args:
        first_seed: 0 to 4294967295, of the first image.
        second_seed: 0 to 4294967295, of the last image.
        class_name: one of the model's classes, or "any".
        count: how many images, 2 to 16, the ends included.
        model: the title of a served model; by default the first one.
        sampler: "ddpm", "ddim", "dpm++", "sde-dpm++" or "unipc"; by default the model's own.
        num_steps: denoising steps, from 1 to the model's T.
        guidance: strength of classifier-free guidance, 0 to 10; 1 is none.

    Returns:
        The images as PNG files, in order, and the settings that drew them.
    """
    with answering("interpolate", on_page=False) as settings:
        asked = editing.interpolation_drawing(
            model, first_seed, second_seed, class_name, count, sampler, num_steps, guidance
        )
        return _drawn(asked, settings)


def trajectory(
    class_name: str = "any",
    count: int = 1,
    seed: int = 0,
    model: str | None = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
) -> FileData:
    """Shows how images come out of noise: an animated WebP, x_t on the left and the network's x̂_0 on the right.

    Args:
        class_name: one of the model's classes, or "any".
        count: how many images, 1 to 16.
        seed: 0 to 4294967295.
        model: the title of a served model; by default the first one.
        sampler: "ddpm", "ddim", "dpm++", "sde-dpm++" or "unipc"; by default the model's own.
        num_steps: denoising steps, from 1 to the model's T; at most 40 of them are shown.
        guidance: strength of classifier-free guidance, 0 to 10; 1 is none.

    Returns:
        The animation as a WebP file.
    """
    with answering("trajectory", on_page=False) as settings:
        asked = drawing.image_drawing(model, class_name, count, sampler, num_steps, guidance, seed)
        settings |= asked.described()
        return _file(drawing.animation(asked, result_file("trajectory.webp")))


def forward(image: FileData, timestep: int, seed: int = 0, model: str | None = None) -> tuple[FileData, dict[str, Any]]:
    """Adds noise to an image: x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε.

    Args:
        image: x_0, fitted to at most 64×64.
        timestep: t, from 1 to the model's T.
        seed: of ε, 0 to 4294967295.
        model: the title of the served model whose noise schedule is used; by default the first one.

    Returns:
        x_t as a PNG file, and numbers: √ᾱ_t, √(1 − ᾱ_t), the signal-to-noise ratio, how nearly t single steps lead there.
    """
    with answering("forward", on_page=False, quiet=True):
        scheduler, pixels = scheduler_of(model), small(opened_image(image))
        made, walked = jump(scheduler, pixels, timestep, seed), walk(scheduler, pixels, timestep, seed)
        numbers = {
            "sqrt_alpha_bar": made.signal_rate,
            "sqrt_one_minus_alpha_bar": made.noise_rate,
            "snr": made.snr,
            "snr_db": made.decibels if math.isfinite(made.decibels) else None,
            "largest_difference_of_single_steps": walked.difference,
        }
        return _png(pixels_of(made.noisy)[0]), numbers


def posterior(timestep: int, previous_timestep: int | None = None, model: str | None = None) -> dict[str, Any]:
    """The posterior q(x_s | x_t, x_0) of a model's noise schedule: mean = w_0 x_0 + w_t x_t, and its variance.

    Args:
        timestep: t, from 1 to the model's T.
        previous_timestep: s, from 0 to t − 1; by default t − 1.
        model: the title of a served model; by default the first one.

    Returns:
        The weights of x_0 and x_t, the variance, ᾱ_t and ᾱ_s, and the signal-to-noise ratios.
    """
    with answering("posterior", on_page=False, quiet=True):
        scheduler = served_models.pipeline(model).scheduler
        return posterior_facts(scheduler, timestep, previous_timestep).as_dict()


def schedule(
    beta_schedule: str = "linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    rescale_zero_snr: bool = False,
) -> dict[str, Any]:
    """A noise schedule: whether it ends in noise, and what to change if it does not.

    Args:
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" (cosine) or "sigmoid".
        num_train_timesteps: T, 2 to 4000.
        beta_start: β_1, 1e-7 to 0.999; the cosine schedule has no use for it.
        beta_end: β_T, from β_1 to 0.999, likewise.
        rescale_zero_snr: shift √ᾱ so that ᾱ_T is 0.

    Returns:
        ᾱ_T, what of the data is left in x_T, a verdict with its remedy, and β, ᾱ and SNR at some timesteps.
    """
    with answering("schedule", on_page=False, quiet=True):
        return schedule_facts(beta_schedule, num_train_timesteps, beta_start, beta_end, rescale_zero_snr).as_dict()


def equations(language: str = "en") -> str:
    """Every equation of DDPM that this demo implements, with the function and the test of each, as Markdown with LaTeX.

    Args:
        language: "en" or "zh".

    Returns:
        The text.
    """
    with answering("equations", on_page=False, quiet=True):
        return equations_document.markdown(choice(Both("Language", "语言"), language, ("en", "zh")))


def models() -> list[dict[str, Any]]:
    """The models that can be asked for.

    Returns:
        For each model its title, its classes, T, the size and the channels of its images, and how it is best sampled; or its problem.
    """
    with answering("models", on_page=False, quiet=True):
        return [_listed(served_models.title(name)) for name in served_models.names()]


def model(model: str | None = None) -> dict[str, Any]:
    """A model's card and its measured figures.

    Args:
        model: the title of a served model; by default the first one.

    Returns:
        The card as Markdown, and the figures.
    """
    with answering("model", on_page=False, quiet=True):
        known = model_facts(model)
        return known.as_dict() | {"card": known.card, "metrics": known.metrics}


def _drawn(asked: Drawing, settings: dict) -> tuple[list[dict], dict]:
    settings |= asked.described()
    if asked.method == "stream":
        frame = drawing.finished(asked)
    else:
        *_, frame = drawing.frames(asked)
    return [_png(pixels) for pixels in frame.sample], asked.described() | {"seeds": asked.seeds}


def _listed(title: str) -> dict:
    try:
        return model_facts(title).as_dict()
    except InvalidRequestError as error:  # the others can be asked for
        return {"title": title, "problem": str(error)}


def _png(pixels: np.ndarray) -> dict:
    path = result_file("image.png")
    as_image(pixels).save(path)
    return _file(path)


def _file(path: Path) -> dict:
    return FileData(path=str(path)).model_dump()
