"""The presets: every one is read, its network computes, and the paper's networks are the paper's."""

from types import SimpleNamespace

import pytest
import torch
from build_model import build_scheduler, build_unet, check_network
from config_parser import parse_config
from conftest import REPOSITORY

CONFIGS = REPOSITORY / "training" / "configs"
PRESETS = sorted(CONFIGS.glob("*.yaml"))
SHAPES = {  # channels, height, width and number of classes of the images that each one is for
    "digits": (1, 8, 8, 10),
    "smoke": (1, 8, 8, 10),
    "fashion_mnist": (1, 28, 28, 10),
    "fashion_mnist_refined": (1, 28, 28, 10),
    "fashion_mnist_10min": (1, 28, 28, 10),
    "cifar10": (3, 32, 32, 0),
    "celebahq_256": (3, 256, 256, 0),
    "butterflies_128": (3, 128, 128, 0),
}


def network(name: str):
    config = parse_config(["--config", str(CONFIGS / f"{name}.yaml")])
    *shape, classes = SHAPES[name]
    with torch.device("meta"):
        return build_unet(config, SimpleNamespace(image_shape=tuple(shape), class_names=["-"] * classes))


def parameters(unet) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())


def paper_parameters(levels: list[int], size: int, attention_at: int, blocks: int = 2, colours: int = 3) -> int:
    """Counted from the structure of the paper's code (github.com/hojonathanho/diffusion, diffusion_tf/models/unet.py)."""
    embedding = 4 * levels[0]

    def dense(source, target):
        return source * target + target

    def convolution(source, target, width=3):
        return source * target * width**2 + target

    def norm(channels):
        return 2 * channels

    def residual(source, target):
        count = norm(source) + convolution(source, target) + dense(embedding, target)
        count += norm(target) + convolution(target, target)
        return count + (convolution(source, target, 1) if source != target else 0)

    def attention(channels):  # q, k, v and the projection
        return norm(channels) + 4 * convolution(channels, channels, 1)

    total = dense(levels[0], embedding) + dense(embedding, embedding) + convolution(colours, levels[0])
    skips, channels = [levels[0]], levels[0]
    for level, target in enumerate(levels):
        for _ in range(blocks):
            total += residual(channels, target) + (attention(target) if size >> level == attention_at else 0)
            channels = target
            skips.append(channels)
        if level < len(levels) - 1:
            total += convolution(channels, channels)
            skips.append(channels)
    total += 2 * residual(channels, channels) + attention(channels)
    for level, target in reversed(list(enumerate(levels))):
        for _ in range(blocks + 1):
            total += residual(channels + skips.pop(), target) + (
                attention(target) if size >> level == attention_at else 0
            )
            channels = target
        if level:
            total += convolution(channels, channels)
    assert not skips
    return total + norm(channels) + convolution(channels, colours)


def test_every_preset_is_known_here():
    assert {preset.stem for preset in PRESETS} == SHAPES.keys()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
class TestEveryPreset:
    def test_it_is_read_and_can_be_sampled(self, preset):
        config = parse_config([f"--config={preset}"])
        assert config.output_dir == f"outputs/{preset.stem}"
        build_scheduler(config).set_timesteps(config.num_inference_steps)

    def test_its_network_computes_on_its_images(self, preset):
        check_network(parse_config([f"--config={preset}"]))
        assert network(preset.stem).config.in_channels == SHAPES[preset.stem][0]

    def test_it_says_where_it_comes_from_and_what_was_measured(self, preset):
        comment = [line for line in preset.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert "Source: " in " ".join(comment)
        assert "easured: " in " ".join(comment) or "easured here: " in " ".join(comment)


def test_cifar10_is_the_network_of_the_paper():
    """35.7 M in the paper; 35,746,307 is what google/ddpm-cifar10-32 has, which was converted from it."""
    unet = network("cifar10")
    assert parameters(unet) == paper_parameters([128, 256, 256, 256], size=32, attention_at=16) == 35_746_307
    stored = {
        "act_fn": "silu", "attention_head_dim": None, "block_out_channels": (128, 256, 256, 256), "in_channels": 3,
        "center_input_sample": False, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "out_channels": 3,
        "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-6, "norm_num_groups": 32, "sample_size": 32,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "time_embedding_type": "positional", "num_class_embeds": None, "dropout": 0.1,
    }  # fmt: skip
    assert {name: unet.config[name] for name in stored} == stored


def test_cifar10_is_the_run_of_the_paper():
    """Appendix B, and `train` in scripts/run_cifar.py of its code."""
    config = parse_config(["--config", str(CONFIGS / "cifar10.yaml")])
    said = {
        "learning_rate": 2e-4, "lr_schedule": "constant", "warmup_steps": 5000, "weight_decay": 0, "max_grad_norm": 1,
        "batch_size": 128, "max_train_steps": 800_000, "ema_decays": (0.9999,), "random_flip": True, "dropout": 0.1,
        "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "objective": "simple", "variance_type": "fixed_large", "class_conditional": False,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in said} == said


def test_celebahq_is_the_network_of_the_paper():
    """114 M in the paper; 113,673,219 in google/ddpm-celebahq-256."""
    count = paper_parameters([128, 128, 256, 256, 512, 512], size=256, attention_at=16)
    assert parameters(network("celebahq_256")) == count == 113_673_219


def test_the_ten_minutes_are_for_a_small_network():
    assert parameters(network("fashion_mnist_10min")) == pytest.approx(1.33e6, rel=0.01)
