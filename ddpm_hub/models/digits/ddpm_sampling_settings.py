"""How a model is sampled where the caller does not say: what is stored with it, then what is usual.

This file is copied beside every model that is published: it imports its siblings.
"""

from dataclasses import dataclass

from .ddpm_argument_checks import check_choice, check_guidance
from .ddpm_samplers import SAMPLERS, make_sampler

SETTINGS = ("sampler", "num_inference_steps", "eta", "guidance_scale", "guidance_interval")


@dataclass(frozen=True)
class SamplingSettings:
    """Attributes:
    sampler (`str`): one of [`SAMPLERS`].
    num_inference_steps (`int`, *optional*), eta (`float`, *optional*): `None` is what is usual for the sampler.
    guidance_scale (`float`): 1 is no guidance.
    guidance_interval (`tuple[int, int]`, *optional*): the smallest and the largest guided timestep; `None` is all.
    """

    sampler: str = "ddpm"
    num_inference_steps: int | None = None
    eta: float | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[int, int] | None = None


USUAL = SamplingSettings()


def checked_sampling(stored: dict | None, scheduler, num_classes: int | None) -> dict | None:
    """The settings that are stored with a model, for JSON.

    Raises:
        ValueError: naming a key that is unknown, or whose value this model cannot be sampled with.
    """
    if stored is None:
        return None
    if not isinstance(stored, dict) or not set(stored) <= set(SETTINGS):
        raise ValueError(
            f"`sampling` is {stored!r}; it must be a dictionary of {', '.join(SETTINGS)}, or some of them."
        )
    stored = {name: stored[name] for name in SETTINGS if stored.get(name) is not None}
    scale = stored.get("guidance_scale", 1.0)
    check_guidance(
        scale, stored.get("guidance_interval"), None if num_classes is None else 0, num_classes, len(scheduler)
    )
    make_sampler(scheduler, stored.get("sampler", "ddpm"), stored.get("num_inference_steps"), stored.get("eta"))
    plain = {"num_inference_steps": int, "eta": float, "guidance_scale": float,
             "guidance_interval": lambda bounds: [int(bound) for bound in bounds]}  # JSON knows no NumPy  # fmt: skip
    return {name: plain.get(name, str)(value) for name, value in stored.items()} or None


def settings_for_call(
    stored: dict | None, given: dict, has_labels: bool, usual: SamplingSettings, samplers: tuple[str, ...] = SAMPLERS
) -> SamplingSettings:
    """What the caller gave, else what is stored, else what is usual.

    The stored steps and η belong to the stored sampler, and the usual ones to the usual sampler: with another they do not
    count. Guidance is stored for classes, and does not count where none is asked for; its interval counts for any scale but 1.

    Args:
        stored (`dict`, *optional*): the model's own.
        given (`dict`): what the caller said, by the names in [`SETTINGS`]; `None` is nothing.
        has_labels (`bool`): whether classes are asked for.
        usual (`SamplingSettings`): of this way of sampling.
        samplers (`tuple[str, ...]`): those that this way of sampling can use.
    """
    stored = {"sampler": "ddpm"} | stored if stored else {}
    if given["sampler"] is not None:
        check_choice("sampler", given["sampler"], samplers)
    sampler = given["sampler"] or (stored.get("sampler") if stored.get("sampler") in samplers else usual.sampler)
    guidance = {name: stored.get(name) if has_labels else None for name in ("guidance_scale", "guidance_interval")}
    layers = [
        given,
        (stored if stored.get("sampler") == sampler else {}) | guidance,
        vars(usual if usual.sampler == sampler else SamplingSettings(sampler, guidance_scale=usual.guidance_scale)),
    ]
    chosen = {name: next((layer[name] for layer in layers if layer.get(name) is not None), None) for name in SETTINGS}
    if given["guidance_interval"] is None and chosen["guidance_interval"] is not None:
        chosen["guidance_interval"] = None if chosen["guidance_scale"] == 1 else tuple(chosen["guidance_interval"])
    return SamplingSettings(**chosen | {"sampler": sampler})
