"""Trains a classifier that ships with the package, by whose features samples are judged (`ddpm_hub/domain_classifier.py`).

    python training/train_classifier.py --dataset training/data/digits --output ddpm_hub/domain_classifiers/digits.safetensors \\
        --width 16 --epochs 100 --batch_size 64 --shift 1
    python training/train_classifier.py --dataset zalando-datasets/fashion_mnist --flip \\
        --output ddpm_hub/domain_classifiers/fashion_mnist.safetensors

The split `test` is looked at once, after the last epoch. What the file says of itself stands in its header. The same command
gives the same bytes on the same machine with as many threads.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from train_config import TrainConfig, UserError

LABEL_SMOOTHING = 0.1
WEIGHT_DECAY = 0.01


def main(argv: list[str]) -> int:
    options = parse_options(argv)
    try:
        run(options)
    except (UserError, OSError) as error:
        print(f"train_classifier.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def parse_options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--dataset", required=True, help="a folder or a data set of the Hub, with the splits train and test and classes"
    )
    add("--output", required=True, type=Path, metavar="FILE", help="a .safetensors file; its name is the classifier's")
    add("--width", type=int, default=32, help="channels of the first level (default: 32)")
    add("--epochs", type=int, default=12, help="(default: 12)")
    add("--batch_size", type=int, default=128, help="(default: 128)")
    add("--learning_rate", type=float, default=4e-3, help="the highest, of AdamW (default: 0.004)")
    add("--shift", type=int, default=2, help="pixels by which images are moved at random (default: 2)")
    add("--flip", action="store_true", help="mirror every second image left to right, at random")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    import torch
    from durable_files import write_tensors
    from image_data import load_images

    train = load_images(TrainConfig(dataset_name=options.dataset))
    test = load_images(TrainConfig(dataset_name=options.dataset, split="test"))
    if train.labels is None:
        raise UserError(f"`--dataset` is {options.dataset!r}, which has no classes to train on.")
    network = fit(train, options)
    accuracy = measured_accuracy(network, test)
    facts = {
        "dataset": Path(options.dataset).name if Path(options.dataset).exists() else options.dataset,
        "num_images": len(train),
        "num_test_images": len(test),
        "test_accuracy": round(accuracy, 6),
        "class_names": train.class_names,
        "image_shape": train.image_shape,
        **{name: getattr(options, name) for name in ("width", "epochs", "batch_size", "learning_rate", "shift", "flip", "seed")},
        "torch": torch.__version__,
    }  # fmt: skip
    tensors = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    counters = {name: tensor for name, tensor in network.state_dict().items() if not tensor.is_floating_point()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(options.output, tensors | counters, {name: json.dumps(value) for name, value in facts.items()})
    print(f"{accuracy:.2%} of {len(test):,} test images; {options.output}, {options.output.stat().st_size:,} bytes")


def fit(data, options: argparse.Namespace):
    """The trained network. The rate of AdamW rises for a fifth of the steps and then falls to zero, by a cosine."""
    import torch
    from random_batches import generator
    from torch.nn import functional

    from ddpm_hub.domain_classifier import DomainClassifier

    torch.manual_seed(options.seed)
    network = DomainClassifier(data.image_shape[0], len(data.class_names), options.width)
    network.to(memory_format=torch.channels_last).train()
    pixels, labels = data.at(torch.arange(len(data)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = options.epochs * (len(data) // options.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    for epoch in range(options.epochs):
        own = generator(options.seed, "classifier", epoch)
        order, total = torch.randperm(len(data), generator=own), 0.0
        for rows in order.split(options.batch_size):
            if len(rows) < options.batch_size:
                break
            logits = network(augmented(pixels[rows], options, own))[1]
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {options.epochs}: loss {total * options.batch_size / len(data):.4f}", flush=True)
    return network.eval()


def _rate(done: float) -> float:
    rise = 0.2
    return max(done / rise, 1e-3) if done < rise else (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2


def augmented(pixels, options: argparse.Namespace, own):
    """Images in [−1, 1], moved by up to `shift` pixels (the edge is repeated) and mirrored, at random."""
    import torch
    from random_batches import cut_windows
    from torch.nn import functional

    from ddpm_hub.ddpm_equations import normalize

    count, height, width = len(pixels), *pixels.shape[2:]
    wide = functional.pad(pixels.float(), [options.shift] * 4, mode="replicate").to(pixels.dtype)
    corners = torch.randint(2 * options.shift + 1, (count, 2), generator=own)
    mirrored = (torch.rand(count, generator=own) < 0.5) & torch.tensor(options.flip)
    return normalize(cut_windows(wide, corners, mirrored, height, width)).contiguous(memory_format=torch.channels_last)


def measured_accuracy(network, data) -> float:
    """The share of images whose class the network finds."""
    import torch

    from ddpm_hub.ddpm_equations import normalize

    right = 0
    with torch.no_grad():
        for rows in torch.arange(len(data)).split(500):
            pixels, labels = data.at(rows)
            right += (network(normalize(pixels))[1].argmax(dim=1) == labels).sum().item()
    return right / len(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
