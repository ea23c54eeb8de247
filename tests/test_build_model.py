"""The network and the scheduler of a configuration: shapes, what is learned, what is refused and when."""

from types import SimpleNamespace

import pytest
import torch
from build_model import build_scheduler, build_unet, check_network
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from train_config import TrainConfig, UserError


def data(*shape: int, classes: int = 3) -> SimpleNamespace:
    return SimpleNamespace(image_shape=shape, class_names=[str(number) for number in range(classes)])


def predict(unet, labels: torch.Tensor | None = None) -> torch.Tensor:
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, unet.config.in_channels, height, width, generator=torch.Generator().manual_seed(0))
    return unet(images, torch.tensor([0, 999]), class_labels=labels, return_dict=False)[0]


class TestNetwork:
    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (5, 16, 24)])
    def test_it_has_the_shape_of_the_data(self, shape):
        unet = build_unet(TrainConfig(block_out_channels=(8, 16)), data(*shape))
        assert predict(unet, torch.tensor([0, 3])).shape == (2, *shape)
        assert unet.config.num_class_embeds == 4

    def test_without_classes_it_takes_no_labels(self):
        unet = build_unet(TrainConfig(block_out_channels=(8, 16)), data(1, 8, 8, classes=0))
        assert unet.config.num_class_embeds is None
        assert predict(unet).shape == (2, 1, 8, 8)

    def test_a_learned_variance_doubles_the_output_and_not_the_input(self):
        config = TrainConfig(block_out_channels=(8, 16), variance_type="learned_range", objective="hybrid")
        unet = build_unet(config, data(3, 8, 8, classes=0))
        assert (unet.config.in_channels, predict(unet).shape) == (3, (2, 6, 8, 8))

    def test_attention_is_where_it_was_asked_for(self):
        config = TrainConfig(block_out_channels=(8, 16, 24), attention_resolutions=(8,))
        unet = build_unet(config, data(1, 16, 24))
        assert unet.config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
        assert unet.config.up_block_types == ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
        assert [attention.heads for attention in unet.down_blocks[1].attentions] == [2]  # 16 channels, 8 to a head

    def test_one_head(self):
        config = TrainConfig(block_out_channels=(8, 16, 24), attention_resolutions=(8,), attention_head_dim=None)
        unet = build_unet(config, data(1, 16, 16))
        assert [unet.down_blocks[1].attentions[0].heads, unet.mid_block.attentions[0].heads] == [1, 1]

    def test_further_options_reach_the_network(self):
        options = {"add_attention": False, "norm_eps": 1e-3, "freq_shift": 1}
        unet = build_unet(TrainConfig(unet_options=options), data(1, 8, 8))
        assert {name: unet.config[name] for name in options} == options
        assert not unet.mid_block.attentions[0]

    def test_a_learned_embedding_of_the_timesteps_has_all_of_them(self):
        options = {"time_embedding_type": "learned"}
        unet = build_unet(TrainConfig(num_train_timesteps=1500, unet_options=options), data(1, 8, 8, classes=0))
        assert unet.time_proj.num_embeddings == 1500

    def test_trying_it_out_takes_no_random_numbers_and_leaves_it_on_the_cpu(self):
        torch.manual_seed(0)
        unet = build_unet(TrainConfig(), data(1, 8, 8))
        state = torch.get_rng_state()
        torch.manual_seed(0)
        check_network(TrainConfig())
        again = build_unet(TrainConfig(), data(1, 8, 8))
        assert torch.equal(torch.get_rng_state(), state)
        for one, other in zip(unet.parameters(), again.parameters(), strict=True):
            assert one.device.type == "cpu"
            assert torch.equal(one, other)

    @pytest.mark.parametrize(
        ("values", "shape", "message"),
        [
            ({"block_out_channels": (8, 8, 8)}, (1, 14, 28), "has 3 levels, .*28×14 images can be halved 1 times"),
            ({"attention_resolutions": (7,)}, (1, 28, 28), "no level of the U-Net has height 7"),
            # One value to each group: group normalisation refuses it, and so would a sample of one image.
            ({"block_out_channels": (8, 16)}, (1, 2, 2), r"`block_out_channels` is \[8, 16\], a network that cannot compute "
             "on 2×2 images"),
        ],
    )  # fmt: skip
    def test_data_that_does_not_fit_is_refused(self, values, shape, message):
        with pytest.raises(UserError, match=message):
            build_unet(TrainConfig(**values), data(*shape))


class TestBeforeTheData:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                {"unet_options": {"activation": "relu"}},
                "`unet_options` has 'activation', .*takes act_fn, add_attention, ",
            ),
            (
                {"unet_options": {"act_fn": "relo"}},
                r"`unet_options` is \{'act_fn': 'relo'\}, .*activation function relo",
            ),
            ({"unet_options": {"norm_eps": "small"}}, "`unet_options` is .*eps"),
            ({"unet_options": {"downsample_padding": 3}}, "`unet_options` is .*Sizes of tensors must match"),
            ({"unet_options": {"attn_norm_num_groups": 7}}, "`unet_options` is .*divisible"),
            ({"resolution": 2, "block_out_channels": (8, 16)}, "cannot compute on 2×2 images"),
        ],
    )
    def test_what_cannot_compute_is_refused(self, values, message):
        with pytest.raises(UserError, match=message):
            check_network(TrainConfig(**values))

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"resolution": (16, 24), "image_mode": "RGBA", "attention_resolutions": (8,)},
            {"attention_resolutions": (7,)},  # whether there is such a height is known with the data
            {"unet_options": {"resnet_time_scale_shift": "scale_shift", "mid_block_type": None}},
            {"unet_options": {"time_embedding_type": "learned"}},
        ],
        ids=str,
    )
    def test_what_computes_is_accepted(self, values):
        check_network(TrainConfig(**values))


class TestScheduler:
    def test_it_is_the_one_of_the_configuration(self):
        config = TrainConfig(
            num_train_timesteps=500, beta_schedule="scaled_linear", beta_start=1e-3, beta_end=0.05,
            prediction_type="v_prediction", variance_type="learned_range", objective="vlb", rescale_betas_zero_snr=True,
        )  # fmt: skip
        scheduler = build_scheduler(config)
        for name in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type",
                     "variance_type", "rescale_betas_zero_snr"):  # fmt: skip
            assert scheduler.config[name] == getattr(config, name)
        assert scheduler.alphas_cumprod[-1] == 0
        scheduler.set_timesteps(7)
        assert scheduler.timesteps[0] == 499

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"beta_schedule": "cosine"}, "`beta_schedule` is 'cosine'; it must be one of 'linear'"),
            ({"prediction_type": "noise"}, "`prediction_type` is 'noise'"),
            ({"beta_start": 0.0}, "`beta_start` is 0.0"),
            ({"beta_end": 1e-5}, "`beta_end` is 1e-05, below `beta_start`"),
        ],
    )
    def test_what_the_scheduler_refuses_is_a_mistake_of_the_user(self, values, message):
        with pytest.raises(UserError, match=message):
            build_scheduler(TrainConfig(**values))


def test_it_begins_as_the_identity():
    """Every residual and attention block adds nothing at first, and the prediction is 0, so the loss begins at E[target²]."""
    unet = build_unet(TrainConfig(attention_resolutions=(8,)), data(1, 8, 8))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    time = torch.randn(2, 128)
    with torch.no_grad():
        assert not unet(x, torch.tensor([3, 900]), class_labels=torch.tensor([0, 1])).sample.any()
        blocks = [m for m in unet.modules() if isinstance(m, (ResnetBlock2D, Attention))]
        assert len(blocks) > 5
        for block in blocks:
            if isinstance(block, Attention):
                h = torch.randn(2, block.to_q.in_features, 4, 4)
                assert torch.equal(block(h), h)
            else:
                h = torch.randn(2, block.in_channels, 4, 4)
                shortcut = h if block.conv_shortcut is None else block.conv_shortcut(h)
                assert torch.equal(block(h, time), shortcut)
