"""A network that is placed for training computes what it did, in the layouts and the precision that are fast where it is."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from layer_speed import AttentionInFloat32, place_for_training

CHANNELS_LAST = torch.channels_last


def made_unet(dropout: float = 0.0) -> UNet2DModel:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        dropout=dropout,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    for parameter in unet.parameters():  # those that begin as zero would hide what comes before them
        torch.nn.init.normal_(parameter, std=0.1)
    return unet


def placed(unet: UNet2DModel, precision: str, kind: str = "NO") -> UNet2DModel:
    own = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision, distributed_type=kind)
    return place_for_training(copy.deepcopy(unet), own)


def gradients(unet: UNet2DModel, precision: str) -> torch.Tensor:
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    images = images.to(next(unet.parameters()).dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        prediction = unet(images.contiguous(memory_format=CHANNELS_LAST), torch.tensor([3, 200, 600, 990])).sample
    prediction.double().square().mean().backward()
    return torch.cat([parameter.grad.double().flatten() for parameter in unet.parameters()])


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found - right).norm() / right.norm()).item()


@pytest.fixture(scope="module")
def right() -> torch.Tensor:
    return gradients(made_unet().double(), "no")


class TestGradients:
    """Of the whole network, against `right`, which diffusers' own computes in float64."""

    @pytest.mark.parametrize("kind", ["NO", "FSDP"])
    def test_in_float32(self, right, kind):
        # 2^-24 at each of the sums, of up to 16 · 9 products, of some 20 layers and back.
        assert error(gradients(placed(made_unet(), "no", kind), "no"), right) < 2 * 20 * 144 * 2**-24

    def test_in_bfloat16_no_less_exact_than_diffusers_own(self, right):
        ours, plain = gradients(placed(made_unet(), "bf16"), "bf16"), gradients(made_unet(), "bf16")
        # The rounding of activations to 8 bits is in both; it is random, so the two may differ by some of it.
        assert error(ours, right) < 1.25 * error(plain, right)
        assert 0 < error(plain, right) < 2 * 20 * 2**-8


class TestLayouts:
    def seen_by_norms(self, unet: UNet2DModel, precision: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What goes into the norms of images and comes out of them, after the placing's own changes of it."""
        seen = []
        for module in unet.modules():
            if isinstance(module, torch.nn.GroupNorm):
                went_in = []
                module.register_forward_pre_hook(lambda _, images, kept=went_in: kept.append(images[0]))
                module.register_forward_hook(lambda _, __, out, kept=went_in: seen.append((kept.pop(), out)))
        gradients(unet, precision)
        return [(given, normed) for given, normed in seen if given.dim() == 4]

    def test_norms_in_bfloat16_compute_in_the_usual_one(self):
        seen = self.seen_by_norms(placed(made_unet(), "bf16"), "bf16")
        assert len(seen) == 17  # two in each of eight residual blocks, and the last
        for given, normed in seen:
            assert (given.dtype, normed.dtype) == (torch.bfloat16, torch.bfloat16)
            assert given.is_contiguous()
            assert normed.is_contiguous(memory_format=CHANNELS_LAST)

    def test_norms_in_float32_compute_in_channels_last(self):
        seen = self.seen_by_norms(placed(made_unet(), "no"), "no")
        assert len(seen) == 17
        for given, normed in seen:
            assert given.is_contiguous(memory_format=CHANNELS_LAST)
            assert normed.is_contiguous(memory_format=CHANNELS_LAST)

    def test_a_network_placed_for_bfloat16_draws_in_float32_as_it_would_anyway(self):
        seen = self.seen_by_norms(placed(made_unet(), "bf16"), "no")
        assert all(given.is_contiguous(memory_format=CHANNELS_LAST) for given, _ in seen)
        assert torch.equal(gradients(placed(made_unet(), "bf16"), "no"), gradients(placed(made_unet(), "no"), "no"))

    def test_the_shortcuts_of_residual_blocks_take_what_they_are_given(self):
        unet, seen = placed(made_unet(), "no"), []
        for module in unet.modules():
            if isinstance(module, ResnetBlock2D) and module.conv_shortcut is not None:
                module.conv_shortcut.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
        gradients(unet, "no")
        assert len(seen) == 5  # one on the way down, and all four on that up, whose input has skips beside it
        assert all(images.is_contiguous(memory_format=CHANNELS_LAST) for images in seen)

    def test_the_weights(self):
        weight = made_unet().conv_in.weight.repeat(1, 2, 1, 1)
        assert not weight.is_contiguous(memory_format=CHANNELS_LAST)
        for kind in ("NO", "MULTI_CPU"):
            for weight in (p for p in placed(made_unet(), "no", kind).parameters() if p.dim() == 4):
                assert weight.is_contiguous(memory_format=CHANNELS_LAST)
        assert all(weight.is_contiguous() for weight in placed(made_unet(), "no", "FSDP").parameters())


class TestAttention:
    def layers(self, unet: UNet2DModel) -> list[Attention]:
        return [module for module in unet.modules() if isinstance(module, Attention)]

    def test_under_autocast_it_is_that_of_float32_to_the_last_bit(self):
        [ours, *others] = self.layers(placed(made_unet(), "bf16"))
        assert len(others) == 3  # of each level that has it, one on the way down, two on that up, and one in the middle
        plain = self.layers(made_unet())[0]
        images = torch.randn(2, 16, 8, 8).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            found = ours(images)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, plain(images.float()).bfloat16())

    def test_of_a_network_that_was_converted_it_is_that_of_its_weights(self):
        images = torch.randn(2, 16, 8, 8).bfloat16()
        ours, plain = (self.layers(unet.bfloat16())[0] for unet in (placed(made_unet(), "bf16"), made_unet()))
        assert torch.equal(ours(images), plain(images))

    def test_it_is_diffusers_own_elsewhere(self):
        assert {type(layer.processor) for layer in self.layers(placed(made_unet(), "no"))} == {AttnProcessor2_0}
        assert {type(layer.processor) for layer in self.layers(placed(made_unet(), "bf16"))} == {AttentionInFloat32}


def test_drop_out_stays():
    unet = placed(made_unet(dropout=0.5), "bf16")
    torch.manual_seed(1)
    first = gradients(unet, "bf16")
    unet.zero_grad()
    assert not torch.equal(first, gradients(unet, "bf16"))


def test_what_is_saved_is_as_before(tmp_path):
    unet = made_unet()
    placed(unet, "bf16").save_pretrained(tmp_path / "placed")
    unet.save_pretrained(tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "placed" / file.name).read_bytes()
