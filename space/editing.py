"""Ways to draw that begin with something: an image that is noised and drawn anew, a part that is painted, two seeds."""

import numpy as np
import served_models
from both_languages import Both
from drawing import LARGEST_COUNT, Drawing, checked_calls, checked_count, checked_seed, checked_seeds, sampling_options
from pictures import fitted
from PIL import Image
from request_checks import InvalidRequestError, number, whole_number

from ddpm_hub import DDPMHubPipeline
from ddpm_hub.ddpm_image_formats import PIL_MODES

# RePaint goes back in noise exactly, which only these samplers can.
INPAINTING_SAMPLERS = ("ddpm", "ddim")
LARGEST_RESAMPLINGS = 10
JUMP_LENGTH = 10


def model_image(pipeline: DDPMHubPipeline, image: Image.Image) -> Image.Image:
    """An image in the size and the channels of the model.

    Raises:
        InvalidRequestError: if the model has channels that images do not.
    """
    channels = pipeline.unet.config.in_channels
    if channels not in PIL_MODES:
        raise InvalidRequestError(
            f"This model has {channels} channels; images have 1, 3 or 4.",
            f"该模型有 {channels} 个通道；图像只有 1、3 或 4 个。",
        )
    return fitted(image.convert(PIL_MODES[channels]), pipeline.image_size)


def img2img_drawing(
    model: str | None,
    image: Image.Image,
    strength: float,
    class_name: str | None,
    count: int,
    sampler: str | None,
    num_steps: int | None,
    guidance: float | None,
    seed: int,
) -> Drawing:
    """An image with noise up to a level, drawn anew from there (SDEdit, arXiv:2108.01073).

    Args:
        model, class_name, count, sampler, num_steps, guidance, seed: as in `drawing.image_drawing`.
        image (`PIL.Image.Image`): what to begin with, fitted to the model.
        strength (`float`): how much noise, from above 0 to 1.

    Raises:
        InvalidRequestError: for a value outside its range or a model that does not load.
    """
    name = served_models.by_title(model)
    pipeline = served_models.load(name)
    options = sampling_options(pipeline, class_name, sampler, num_steps, guidance)
    strength = number(Both("Strength", "强度"), strength, 0.01, 1)
    count, seeds = checked_count(count), checked_seeds(seed, count)
    options |= {"image": model_image(pipeline, image), "strength": strength, "batch_size": count, "seed": seeds}
    return Drawing(name, "stream_img2img", options, seeds, checked_calls(count * options["num_inference_steps"]))


def inpainting_drawing(
    model: str | None,
    image: Image.Image,
    mask: np.ndarray,
    class_name: str | None,
    count: int,
    sampler: str | None,
    num_steps: int | None,
    resamplings: int,
    guidance: float | None,
    seed: int,
) -> Drawing:
    """What the mask covers is painted, the rest stays (RePaint, arXiv:2201.09865).

    Args:
        model, class_name, count, num_steps, guidance, seed: as in `drawing.image_drawing`.
        image (`PIL.Image.Image`): the known pixels, fitted to the model.
        mask (`numpy.ndarray` of `bool`, shape (H, W) of the model): where to paint.
        sampler (`str`): `ddpm` or `ddim`.
        resamplings (`int`): 1 to 10, how often each stretch of steps is taken.

    Raises:
        InvalidRequestError: for a value outside its range or a model that does not load.
    """
    name = served_models.by_title(model)
    pipeline = served_models.load(name)
    options = sampling_options(pipeline, class_name, sampler, num_steps, guidance, INPAINTING_SAMPLERS)
    resamplings = whole_number(Both("Resamplings", "重采样次数"), resamplings, 1, LARGEST_RESAMPLINGS)
    if mask.shape != pipeline.image_size:
        raise InvalidRequestError(
            f"The mask is {mask.shape[1]}×{mask.shape[0]}; the model's images are "
            f"{pipeline.image_size[1]}×{pipeline.image_size[0]}.",
            f"遮罩大小为 {mask.shape[1]}×{mask.shape[0]}，而模型的图像为 {pipeline.image_size[1]}×{pipeline.image_size[0]}。",
        )
    if not mask.any():
        raise InvalidRequestError(
            "Nothing is marked: paint over what is to be drawn anew.", "未标记任何区域：请涂抹要重绘的部分。"
        )
    count, seeds = checked_count(count), checked_seeds(seed, count)
    options |= {
        "image": model_image(pipeline, image),
        "mask": mask,
        "resamplings": resamplings,
        "jump_length": JUMP_LENGTH,
        "batch_size": count,
        "seed": seeds,
    }
    calls = checked_calls(count * options["num_inference_steps"] * resamplings)
    return Drawing(name, "stream_inpaint", options, seeds, calls)


def interpolation_drawing(
    model: str | None,
    first_seed: int,
    second_seed: int,
    class_name: str | None,
    count: int,
    sampler: str | None,
    num_steps: int | None,
    guidance: float | None,
) -> Drawing:
    """A row of images from one seed to another: all their noise is mixed spherically.

    Args:
        model, class_name, sampler, num_steps, guidance: as in `drawing.image_drawing`.
        first_seed, second_seed (`int`): the ends.
        count (`int`): how many images, the ends included, at least 2.

    Raises:
        InvalidRequestError: for a value outside its range or a model that does not load.
    """
    name = served_models.by_title(model)
    options = sampling_options(served_models.load(name), class_name, sampler, num_steps, guidance)
    count = whole_number(Both("Images", "图像数"), count, 2, LARGEST_COUNT)
    first = checked_seed(first_seed, Both("First seed", "第一个种子"))
    second = checked_seed(second_seed, Both("Second seed", "第二个种子"))
    options |= {"first": first, "second": second, "count": count}
    calls = checked_calls(count * options["num_inference_steps"])
    return Drawing(name, "stream_interpolate", options, [first, second], calls)


def mask_of_image(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """A mask of shape (H, W) from a picture, in which what is lighter than grey is to be painted."""
    return np.asarray(fitted(image.convert("L"), size)) >= 128
