"""Samples of a model and their features, by settings; and noise, from which sampling starts."""

from dataclasses import asdict, dataclass, replace

import torch
from random_batches import generator

from ddpm_hub.ddpm_equations import denormalize
from ddpm_hub.ddpm_samplers import make_sampler
from ddpm_hub.ddpm_sampling_settings import SETTINGS, USUAL, SamplingSettings, settings_for_call
from evaluation.reference import joined_batches
from evaluation.work import Stage


def resolve(pipeline, labels: torch.Tensor | None, largest_seed: int, **given) -> SamplingSettings:
    """The settings of a call with these arguments, as the pipeline completes them by what is stored with the model: all said,
    but that `eta` is `None` for samplers without.

    Raises:
        ValueError: naming the argument that the model cannot be sampled with.
    """
    given = {name: given.get(name) for name in SETTINGS}
    labelled = {} if labels is None else {"class_labels": [0]}
    pipeline.stream(1, seed=largest_seed, **given, **labelled).close()  # checks them
    chosen = settings_for_call(pipeline.config.sampling, given, labels is not None, USUAL)
    sampler = make_sampler(pipeline.scheduler, chosen.sampler, chosen.num_inference_steps, chosen.eta)
    interval = None if chosen.guidance_interval is None else tuple(chosen.guidance_interval)
    return replace(
        chosen,
        num_inference_steps=len(sampler.timesteps),
        eta=getattr(sampler, "eta", None),
        guidance_interval=interval,
    )


def stored_settings(settings: SamplingSettings) -> dict:
    """As metrics.json has them: without those that do not apply."""
    found = {name: value for name, value in asdict(settings).items() if value is not None}
    return found | ({"guidance_interval": list(settings.guidance_interval)} if settings.guidance_interval else {})


@dataclass(frozen=True)
class Drawing:
    """What draws samples and looks at them.

    Attributes:
        pipeline (`DDPMHubPipeline`), extractor: of `extractors.py`.
        labels (`torch.Tensor` of `int64`, shape (n,), *optional*): the class of each sample.
        count (`int`): n.
        batch_size, seed, padding (`int`): sample i has seed + i; the padding is cut off.
        facts (`dict`): of the model, for the names of the stages.
    """

    pipeline: object
    extractor: object
    labels: torch.Tensor | None
    count: int
    batch_size: int
    seed: int
    padding: int
    facts: dict

    def stage(self, name: str, settings: SamplingSettings, keep_pixels: bool = False) -> Stage:
        """Draws with these settings: `features`, (B, d), `logits`, (B, K), and if asked `pixels`, (B, C, H, W), of each batch."""

        def compute(unit: int) -> dict[str, torch.Tensor]:
            rows = range(unit * self.batch_size, min((unit + 1) * self.batch_size, self.count))
            given = {} if self.labels is None else {"class_labels": self.labels[rows.start : rows.stop].tolist()}
            sample = self.pipeline(
                len(rows), seed=self.seed + rows.start, output_type="sample", **asdict(settings), **given
            ).images
            return self._looked_at(sample, keep_pixels)

        return self._stage(name, asdict(settings) | {"keep_pixels": keep_pixels}, compute)

    def noise_stage(self) -> Stage:
        """What sampling starts from, as images: standard normal numbers in place of samples."""
        channels, (height, width) = self.pipeline.unet.config.in_channels, self.pipeline.image_size

        def compute(unit: int) -> dict[str, torch.Tensor]:
            count = min(self.batch_size, self.count - unit * self.batch_size)
            own = generator(self.seed, "noise images", unit)
            return self._looked_at(torch.randn(count, channels, height, width, generator=own))

        return self._stage("noise", {}, compute)

    def _looked_at(self, sample: torch.Tensor, keep_pixels: bool = False) -> dict[str, torch.Tensor]:
        if not bool(sample.isfinite().all()):
            raise RuntimeError(
                "samples hold NaN or infinity: the network's weights are damaged, or its precision does not suffice; look at the "
                "model, and leave --mixed_precision out."
            )
        pixels = denormalize(sample)
        if self.padding:
            pixels = pixels[..., self.padding : -self.padding, self.padding : -self.padding]
        return joined_batches([self.extractor(pixels)]) | ({"pixels": pixels} if keep_pixels else {})

    def _stage(self, name: str, settings: dict, compute) -> Stage:
        facts = self.facts | {
            "settings": settings, "seed": self.seed, "batch_size": self.batch_size, "padding": self.padding,
            "extractor": self.extractor.facts.sha256, "resize": self.extractor.facts.resize, "count": self.count,
            "labels": None if self.labels is None else self.labels.bincount().tolist(),
        }  # fmt: skip
        units = -(-self.count // self.batch_size)
        return Stage(
            name, facts, units, compute, lambda unit: min(self.batch_size, self.count - unit * self.batch_size)
        )
