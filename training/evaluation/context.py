"""What is evaluated and with what: the model, the real images, the judge of samples, and the processes that share the work."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import diffusers
import torch
from launched_script import from_main_process, main_process_first
from pixel_cache import cache_folder
from train_config import UserError

import ddpm_hub
from ddpm_hub import DDPMHubPipeline
from ddpm_hub.ddpm_sampling_settings import SETTINGS, SamplingSettings
from evaluation.extractors import make_extractor
from evaluation.options import PARTS, data_config, train_split
from evaluation.real_images import RealImages, read_images
from evaluation.reference import reference_features
from evaluation.samples import Drawing, resolve
from evaluation.work import Work

SOME = 200  # unseen images that are looked for among the training images
MOST_IN_BOTH = 0.05  # of them, that may be there
LARGEST_COMPARED = 2**31  # bytes of training images, evenly spaced, that are looked through


@dataclass(frozen=True, eq=False)
class Context:
    """Attributes:
    options (`argparse.Namespace`): of the command line, checked.
    pipeline (`DDPMHubPipeline`): on its device.
    identity (`dict`): the model's hashes.
    held, train (`RealImages`): real images that were not trained on, and those that were.
    work (`Work`): the stages.
    state (`accelerate.PartialState`): the processes.
    """

    options: argparse.Namespace
    pipeline: DDPMHubPipeline
    identity: dict
    held: RealImages
    train: RealImages
    work: Work
    state: object

    @property
    def is_main(self) -> bool:
        return self.state.is_main_process

    @property
    def facts(self) -> dict:
        """What every stage depends on."""
        return {
            "model": self.identity["sha256"], "dtype": str(self.pipeline.unet.dtype), "device": self.state.device.type,
            "versions": {module.__name__: module.__version__ for module in (ddpm_hub, diffusers, torch)},
        }  # fmt: skip

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """What is measured, in order."""
        asked = self.options.parts
        if self.pipeline.num_classes is None:
            if asked and "guidance" in asked:
                raise UserError(
                    "`--parts` names guidance, but the model knows no classes, so there is none to guide to."
                )
            return tuple(part for part in PARTS if part in (asked or PARTS) and part != "guidance")
        return tuple(part for part in PARTS if part in (asked or PARTS))

    @cached_property
    def settings(self) -> SamplingSettings:
        """How samples are drawn where no table says otherwise."""
        return self.resolve(**{name: getattr(self.options, name) for name in SETTINGS})

    def resolve(self, **given) -> SamplingSettings:
        options, labels = self.options, None if self.pipeline.num_classes is None else self.train.data.labels
        largest = options.seed + max(options.num_samples or 0, options.study_samples or 0)
        return resolve(self.pipeline, labels, largest, **given)

    @cached_property
    def extractor(self):
        options = self.options
        return main_process_first(  # which downloads what is missing
            self.state,
            lambda: make_extractor(
                options.extractor, self.train.image_shape, self.state.device, options.extractor_weights
            ),
        )

    @cached_property
    def train_features(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self._features(self.train)

    @cached_property
    def held_features(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self._features(self.held)

    def _features(self, images: RealImages) -> tuple[torch.Tensor, torch.Tensor | None]:
        options = self.options
        cache = cache_folder(data_config(options, images.split, self.pipeline.num_classes is not None))
        return reference_features(
            images, self.extractor, options.reference_images, options.batch_size, cache, self.work, self.state.device
        )

    def drawing(self, count: int) -> Drawing:
        """What draws so many samples, of the classes of the training images in their proportions."""
        labels = None if self.pipeline.num_classes is None else self.train.classes_of(count)
        options = self.options
        return Drawing(
            self.pipeline, self.extractor, labels, count, options.batch_size, options.seed, options.padding, self.facts
        )


def read_data(options: argparse.Namespace, pipeline: DDPMHubPipeline, state) -> tuple[RealImages, RealImages]:
    """The images that were not trained on, and those that were.

    Raises:
        UserError: for data that cannot be read or do not fit the model, or if both are the same.
    """
    shape = (pipeline.unet.config.in_channels, *pipeline.image_size)
    split = train_split(options)
    if split == options.split:
        raise UserError(
            f"`--split` is {options.split!r}, which the model was trained on: figures of it would say nothing of other images. "
            f"Name a split that was held out, like 'test' or 'train[90%:]' of a model that was trained on 'train[:90%]'."
        )
    names = None if pipeline.num_classes is None else list(pipeline.id2label.values())

    def read() -> tuple[RealImages, RealImages]:
        configs = [data_config(options, name, names is not None) for name in (options.split, split)]
        train = read_images(configs[1], options.padding, shape, names)
        held = read_images(configs[0], options.padding, shape, names, train.data.class_names)
        return held, train

    held, train = main_process_first(state, read)
    from_main_process(state, lambda: check_apart(held, train))
    return held, train


def check_apart(held: RealImages, train: RealImages) -> None:
    """Whether the unseen images are others than the training images, by the pixels of some of them.

    Raises:
        UserError: if more than a few of them, as data sets have, are among the training images.
    """
    some = {content.tobytes() for content in held.as_bytes(held.rows(SOME)).numpy()}
    rows = train.rows(max(1, LARGEST_COMPARED * len(train) // train.num_bytes))
    parts = (train.as_bytes(part).numpy() for part in rows.split(1024))
    found = len({content for part in parts for image in part if (content := image.tobytes()) in some})
    if found > MOST_IN_BOTH * len(some):
        raise UserError(
            f"`--split` is {held.split!r}, but {found} of {len(some)} of its images are among those of `--train_split` = "
            f"{train.split!r}: figures of it would say nothing of other images. Name splits that share none."
        )


def work_folder(output: Path) -> Path:
    """Where the stages' results are kept."""
    return output / "evaluation"
