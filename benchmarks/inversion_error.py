"""How nearly DDIM leads back to the image that was inverted, by the number of steps.

    python benchmarks/inversion_error.py --model outputs/digits --dataset training/data/digits [--num_images 64]

Root mean square difference between images in [−1, 1] and their `reconstruct`, over all pixels, up to half of T and up to T; and
the share of 8-bit pixels that differ by more than one level.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 20, 50, 100, 250])
    arguments = parser.parse_args()
    from image_data import load_images
    from train_config import TrainConfig

    from ddpm_hub import DDPMHubPipeline
    from ddpm_hub.ddpm_equations import normalize

    pixels, labels = load_images(TrainConfig(dataset_name=arguments.dataset)).some(arguments.num_images)
    pipeline = DDPMHubPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    print("| steps | up to T/2: RMS | pixels off | up to T: RMS | pixels off |\n|---:|---:|---:|---:|---:|")
    for steps in arguments.steps:
        cells = []
        for strength in (0.5, 1.0):
            again = pipeline.reconstruct(
                pixels,
                strength,
                num_inference_steps=steps,
                class_labels=labels if pipeline.num_classes else None,
                output_type="sample",
            ).images
            difference = again - normalize(pixels)
            off = (difference.abs() * 127.5 > 1).float().mean()
            cells += [f"{difference.square().mean().sqrt():.4f}", f"{off:.1%}"]
        print(f"| {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
