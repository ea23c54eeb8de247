"""A campaign against the pipeline: whatever is asked, finite images of the right shape, or a `ValueError`.

Hypothesis draws the way of sampling, its options, images, masks, labels and seeds, each in any form that is allowed, and in
half of the cases makes one argument odd. What is answered is then held against what is promised of every answer.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from conftest import make_unet
from diffusers import UNet2DModel
from hypothesis import strategies as st
from odd_cases import Answers, Asked, Seeds, any_tensor, odd_images, odd_values, random_state, spoiled
from PIL import Image

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_equations import denormalize
from ddpm_hub.ddpm_noise_schedules import beta_range_for

AREA = "Scheduler and pipeline"
SIZE, T = 8, 20
CHANNELS = {"grey": 1, "colour": 3, "learned": 1}
MODES = {1: "L", 3: "RGB"}

# The network adds and multiplies in another order for another batch size: a few roundings of 1e-7. x̂_0 multiplies them by
# up to 1/√ᾱ_T = 158 and guidance by 4. Images of another seed differ by 1.
ROUNDING = 1e-3


@functools.cache
def pipeline(kind: str) -> DDPMHubPipeline:
    """Of grey pictures of three classes; of colour ones, by v and from pure noise; of a learned variance."""
    start, end = beta_range_for(T)
    settings = {"num_train_timesteps": T, "beta_start": start, "beta_end": end, "timestep_spacing": "trailing"}
    unet = make_unet(CHANNELS[kind], None if kind == "colour" else 4)
    if kind == "colour":
        settings |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    if kind == "learned":
        settings |= {"variance_type": "learned_range"}
        unet = UNet2DModel.from_config(unet.config, out_channels=2).eval()
    made = DDPMHubPipeline(unet, DDPMHubScheduler(**settings))
    made.set_progress_bar_config(disable=True)
    return made


# --- The forms in which things are given, of a list with one entry for each image ---

LABELS = {
    "list": list,
    "tuple": tuple,
    "tensor": torch.tensor,
    "small tensor": lambda rows: torch.tensor(rows, dtype=torch.uint8),
    "array": np.array,
    "number": lambda rows: rows[0],
}
SEEDS = {
    "seed": {"list": list, "tuple": tuple, "array": np.array, "tensor": torch.tensor},
    "generator": {"generators": lambda rows: Seeds(tuple(rows))},
}
# Of images, as tensors of uint8 and shape (C, H, W).
IMAGES = {
    "tensor": torch.stack,
    "fractions": lambda rows: torch.stack(rows) / 255,
    "float16": lambda rows: (torch.stack(rows) / 255).half(),
    "float64": lambda rows: torch.stack(rows).double() / 255,
    "array": lambda rows: torch.stack(rows).movedim(1, -1).numpy(),
    "16 bits": lambda rows: torch.stack(rows).movedim(1, -1).numpy().astype(">u2") * 257,
    "fractions in an array": lambda rows: np.flip(np.flip(torch.stack(rows).movedim(1, -1).numpy() / 255, 1), 1),
    "pictures": lambda rows: [picture(row) for row in rows],
    "list": lambda rows: [row[None] for row in rows],
}
# Of masks, as tensors of bool and shape (H, W).
MASKS = {
    "tensor": torch.stack,
    "channel": lambda rows: torch.stack(rows)[:, None].to(torch.uint8) * 255,
    "ones": lambda rows: torch.stack(rows).to(torch.uint8),
    "fractions": lambda rows: torch.stack(rows) * 0.75,
    "array": lambda rows: torch.stack(rows).numpy(),
    "pictures": lambda rows: [Image.fromarray(row.numpy()) for row in rows],
}


def picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.movedim(0, -1).squeeze(-1).numpy(), MODES[len(pixels)] if len(pixels) > 1 else None)


@dataclass
class Case:
    """A call: how it is asked, and what of that is one image's alone, with the form it was given in."""

    kind: str
    method: str
    asked: Asked
    rows: dict[str, tuple[list, Callable]]

    def alone(self, i: int) -> dict:
        """The arguments of a call for image i."""
        given = {name: form([rows[i]]) for name, (rows, form) in self.rows.items()}
        return self.asked.arguments | given | ({"batch_size": 1} if "batch_size" in self.asked.arguments else {})


@st.composite
def options(draw, kind: str, count: int, samplers: tuple[str, ...]) -> tuple[dict, dict]:
    """What every way of sampling is asked, and what of it is one image's alone."""
    sampler = draw(st.sampled_from(samplers))
    given = draw(
        st.fixed_dictionaries(
            {"sampler": st.just(sampler), "num_inference_steps": st.integers(1, 4)},
            optional={"dynamic_thresholding_ratio": st.floats(0, 1, exclude_min=True), "fast": st.just(False)},
        )
    )
    if sampler in ("ddpm", "ddim"):
        spacings = st.sampled_from(["trailing", "linspace"])
        given |= draw(st.fixed_dictionaries({}, optional={"timestep_spacing": spacings}))
    source = draw(st.sampled_from(sorted(SEEDS)))
    rows = {
        source: (
            draw(st.lists(st.integers(0, 2**62), min_size=count, max_size=count)),
            draw(st.sampled_from(list(SEEDS[source].values()))),
        )
    }
    if kind != "colour" and draw(st.booleans()):
        form = draw(st.sampled_from(sorted(LABELS)))
        labels = st.lists(st.integers(0, 2), min_size=count, max_size=count)
        rows["class_labels"] = ([draw(st.integers(0, 2))] * count if form == "number" else draw(labels), LABELS[form])
        if draw(st.booleans()):
            given["guidance_scale"] = draw(st.sampled_from([4.0, 2, 0.5, 0]))
            given |= draw(
                st.fixed_dictionaries({}, optional={"guidance_interval": st.sampled_from([(0, 19), [9, 19]])})
            )
    return given, rows


def images_of(draw, kind: str, count: int) -> tuple[list, Callable]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    pixels = torch.randint(0, 256, (count, CHANNELS[kind], SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return list(pixels), IMAGES[draw(st.sampled_from(sorted(IMAGES)))]


def masks_of(draw, count: int) -> tuple[list, Callable]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    painted = torch.rand((count, SIZE, SIZE), generator=generator) < draw(st.sampled_from([0, 0.1, 0.5, 1]))
    return list(painted), MASKS[draw(st.sampled_from(sorted(MASKS)))]


METHODS = {
    "__call__": ("batch_size", "sample", "height", "width", "return_dict"),
    "img2img": ("image", "strength", "batch_size"),
    "inpaint": ("image", "mask", "resamplings", "jump_length", "batch_size"),
    "interpolate": ("first", "second", "count", "timestep"),
    "invert": ("image", "strength"),
    "reconstruct": ("image", "strength"),
}
EVERYWHERE = ("class_labels", "num_inference_steps", "generator", "seed", "eta", "guidance_scale", "sampler", "fast",
              "timestep_spacing", "guidance_interval", "dynamic_thresholding_ratio")  # fmt: skip
AROUND = ("output_type", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
ODD_IMAGES = odd_images | odd_values | any_tensor
WRONG = {
    **dict.fromkeys(("image", "mask", "first", "second", "sample"), ODD_IMAGES),
    "fast": odd_values.filter(lambda value: value is not True),  # compiling takes a minute
    "callback_on_step_end": odd_values.filter(lambda value: not callable(value)),  # it would be called
}


@st.composite
def cases(draw) -> Case:
    kind, method = draw(st.sampled_from(sorted(CHANNELS))), draw(st.sampled_from(sorted(METHODS)))
    inverts, count = method in ("invert", "reconstruct"), draw(st.sampled_from([2, 3, 1]))
    samplers = {"inpaint": ("ddpm", "ddim"), "invert": ("ddim",), "reconstruct": ("ddim",)}
    count = draw(st.integers(2, 4)) if method == "interpolate" else count
    given, rows = draw(options(kind, count, samplers.get(method, ("ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"))))
    if given["sampler"] in ("ddpm", "ddim") and not inverts:
        given |= draw(st.fixed_dictionaries({}, optional={"eta": st.sampled_from([0, 0.5, 1.0])}))
    if method == "__call__":
        size = st.fixed_dictionaries(
            {}, optional={"height": st.sampled_from([8, 12]), "width": st.sampled_from([8, 16])}
        )
        given |= {"batch_size": count} | draw(size)
    elif method == "interpolate":
        rows = {name: row for name, row in rows.items() if name == "class_labels"}
        given |= draw(ends_of(kind)) | {"count": count}
    else:
        rows["image"] = images_of(draw, kind, count)
        given |= {"strength": draw(st.sampled_from([1, 0.6, 0]) | st.floats(0.2, 1))} if method != "inpaint" else {}
    if method == "inpaint":
        rows["mask"] = masks_of(draw, count)
        given |= {"resamplings": draw(st.integers(1, 3)), "jump_length": draw(st.integers(1, 3))}
    if method != "invert":
        given |= {"output_type": draw(st.sampled_from(["pil", "np", "pt", "sample"]))}
        given |= draw(st.fixed_dictionaries({}, optional={"callback_on_step_end": st.just(same_again)}))
    given |= {name: form(values) for name, (values, form) in rows.items()}
    others = METHODS[method] + EVERYWHERE + (() if method == "invert" else AROUND)
    return Case(kind, method, draw(spoiled(given, WRONG, others)), rows)


@st.composite
def ends_of(draw, kind: str) -> dict:
    """Two seeds, or two images and what goes with them."""
    if draw(st.booleans()):
        return draw(st.fixed_dictionaries({"first": st.integers(0, 2**63 - 1), "second": st.integers(0, 99)}))
    (pixels, form) = images_of(draw, kind, 2)
    seeds = st.integers(0, 99) | st.builds(np.int16, st.integers(0, 99))
    moment = st.integers(0, T - 1) | st.builds(np.uint8, st.integers(0, T - 1))
    return {"first": form(pixels[:1]), "second": form(pixels[1:]), "timestep": draw(moment), "seed": draw(seeds)}


def same_again(pipeline, step: int, timestep: int, tensors: dict) -> dict:
    """A callback that puts back what it got."""
    return tensors


def ask(kind: str, method: str, **arguments):
    given = {key: value.generators() if isinstance(value, Seeds) else value for key, value in arguments.items()}
    result = getattr(pipeline(kind), method)(**given)
    return result if method == "invert" else result[0] if isinstance(result, tuple) else result.images


# --- What is promised of every answer ---


def test_every_call_of_the_pipeline_is_answered_or_refused(campaign):
    answers, times, held = Answers(), campaign.times(90, 550), 0
    for kind in CHANNELS:
        pipeline(kind)  # whose weights are drawn

    @campaign.for_all(times, case=cases())
    def _(case):
        nonlocal held
        state = random_state()
        images = answers.of(functools.partial(ask, case.kind, case.method), case.asked)
        if images is None:
            return
        given = case.asked.arguments
        assert case.asked.odd in ("seed", "generator") or random_state() == state
        check_form(case, images)
        if case.asked.odd is None:
            sample = ask(
                case.kind, case.method, **given | ({} if case.method == "invert" else {"output_type": "sample"})
            )
            check_same(pipeline(case.kind).decode(sample, given.get("output_type", "sample")), images)
            check_stream(case, sample)
            check_alone(case, sample)
            check_mask(case, sample)
            held += 1

    assert held > times / 4
    assert answers.given > times / 3
    campaign.held(
        AREA, "a call of the pipeline, drawing or editing, every argument in every form, one of them odd in half", times,
        f"a refusal that names an argument, or finite images in form and size, no argument and no shared random state changed; in all "
        f"{held} of which nothing was odd the same again, each image as it is alone, known pixels kept",
    )  # fmt: skip


def test_every_image_and_mask_is_taken_or_refused(campaign):
    answers, times, made = Answers(), campaign.times(200, 1500), pipeline("grey")
    anything = ODD_IMAGES | st.lists(ODD_IMAGES, max_size=3)

    def decode(output_type, sample):
        return made.decode(sample, output_type)

    @campaign.for_all(times, value=anything, place=st.sampled_from(["image", "mask", "sample"]))
    def _(value, place):
        once = {"num_inference_steps": 1, "seed": 1, "output_type": "pt"}
        if place == "sample":
            asked, call = Asked({"output_type": "pil", "sample": value}, place), decode
        elif place == "image":
            asked, call = (
                Asked(once | {"image": value, "strength": 0}, place),
                functools.partial(ask, "grey", "img2img"),
            )
        else:
            asked = Asked(once | {"image": torch.zeros(2, 1, SIZE, SIZE), "mask": value, "resamplings": 1}, place)
            call = functools.partial(ask, "grey", "inpaint")
        images = answers.of(call, asked)
        if images is not None and place != "sample":
            assert images.shape[1:] == (1, SIZE, SIZE)
            assert bool(((images >= 0) & (images <= 1)).all())

    assert answers.given > times / 40
    campaign.held(
        AREA, "pictures, arrays, tensors and other things as an image, a mask or a sample, most of them odd", times,
        "a refusal that names it, or finite images",
    )  # fmt: skip


def check_form(case: Case, images) -> None:
    given, channels = case.asked.arguments, CHANNELS[case.kind]
    kind = "sample" if case.method == "invert" else given.get("output_type", "pil")
    if kind == "pil":
        assert all(isinstance(one, Image.Image) and one.mode == MODES[channels] for one in images)
        images = np.stack([np.asarray(one).reshape(*one.size[::-1], channels) for one in images]) / 255
    if kind in ("pil", "np"):
        images = torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1)
    assert kind == "pil" or images.dtype == torch.float32
    assert bool(torch.isfinite(images).all())
    assert kind == "sample" or bool(((images >= 0) & (images <= 1)).all())
    assert images.shape[1] == channels
    if case.asked.odd is None:
        size = (given.get("height", SIZE), given.get("width", SIZE))
        count = given["count"] if case.method == "interpolate" else len(next(iter(case.rows.values()))[0])
        assert images.shape == (count, channels, *size)


def check_same(images, others) -> None:
    assert len(images) == len(others)
    for one, other in zip(images, others, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def check_stream(case: Case, sample: torch.Tensor) -> None:
    """Step by step it is the same; nothing comes out where there is no step."""
    if case.method in ("invert", "reconstruct"):
        return
    given = {name: value for name, value in case.asked.arguments.items() if name not in AROUND}
    given = {name: value.generators() if isinstance(value, Seeds) else value for name, value in given.items()}
    states = list(
        getattr(pipeline(case.kind), "stream" + ("" if case.method == "__call__" else f"_{case.method}"))(**given)
    )
    assert [state.step for state in states] == list(range(len(states)))
    if states:
        assert torch.equal(states[-1].sample, sample)
    else:
        assert given["strength"] < 1


def check_alone(case: Case, sample: torch.Tensor) -> None:
    if case.method == "interpolate" or len(sample) == 1:
        return
    around = {} if case.method == "invert" else {"output_type": "sample"}
    for i in range(len(sample)):
        one = ask(case.kind, case.method, **case.alone(i) | around)
        torch.testing.assert_close(sample[i : i + 1], one, rtol=0, atol=ROUNDING)


def check_mask(case: Case, sample: torch.Tensor) -> None:
    if case.method == "inpaint":
        known, painted = torch.stack(case.rows["image"][0]), torch.stack(case.rows["mask"][0])
        kept = ~painted[:, None].expand_as(known)
        assert torch.equal(denormalize(sample)[kept], known[kept])
