"""The model card of a run: README.md in the output folder, rendered from model_card.md and the run's own figures."""

import dataclasses
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from image_data import ImageData, local_folder
from train_config import REPOSITORY, TrainConfig

from ddpm_hub import DDPMHubPipeline

TEMPLATE = REPOSITORY / "model_card.md"


def write_card(config: TrainConfig, data: ImageData, pipeline: DDPMHubPipeline, metrics: dict, output: Path) -> None:
    """Writes README.md. What was not measured is left out."""
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation",
            license="apache-2.0",
            tags=["ddpm", "ddpm_hub", "diffusion", "image-generation"],
            datasets=[config.dataset_name] if local_folder(config) is None else None,
        ),
        template_path=str(TEMPLATE),
        name=output.name,
        image_size=" × ".join(map(str, data.pixels.shape[1:])),
        num_images=f"{len(data):,}",
        num_parameters=f"{pipeline.unet.num_parameters():,}",
        class_names=data.class_names,
        grid=f"step_{metrics['steps']:06d}.png",
        config=dataclasses.asdict(config),
        metrics=metrics,
    )
    card.save(output / "README.md")
