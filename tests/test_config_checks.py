"""What a configuration cannot say: every key on its own, keys that contradict each other, and keys without effect."""

import dataclasses
import inspect
import itertools
import math
import re
import sys

import pytest
from config_checks import CHOICES, LARGEST_EMA_STD, SET_BY, attention_levels
from diffusers import UNet2DModel
from train_config import TrainConfig, UserError

V = {"prediction_type": "v_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True}
LEARNED = {"variance_type": "learned_range"}


@pytest.mark.parametrize("name", [
    "shuffle_buffer", "validation_images", "validation_every", "layers_per_block", "norm_num_groups", "num_train_timesteps",
    "max_train_steps", "batch_size", "gradient_accumulation_steps", "max_skipped_steps", "ema_snapshot_every",
    "checkpoints_kept", "log_every", "num_inference_steps", "attention_head_dim",
])  # fmt: skip
def test_counts_are_at_least_one(name):
    for value in (0, -3):
        with pytest.raises(UserError, match=f"`{name}` is {value}; it must be at least 1"):
            TrainConfig(**{name: value})


@pytest.mark.parametrize(
    "name", ["random_crop", "warmup_steps", "checkpoint_every", "sample_every", "fidelity_samples"]
)
def test_counts_that_may_be_zero(name):
    assert getattr(TrainConfig(**{name: 0}), name) == 0
    with pytest.raises(UserError, match=f"`{name}` is -1; it must be at least 0"):
        TrainConfig(**{name: -1})


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_the_share_that_stays_uniform(share):
    with pytest.raises(UserError, match=f"`importance_uniform_share` is {share}; it must be above 0 and at most 1"):
        TrainConfig(timestep_sampling="importance", importance_uniform_share=share)


@pytest.mark.parametrize("interval", [(-1, 5), (6, 5), (0, 1000), (5,), (), (1.5, 3)])
def test_the_guided_timesteps(interval):
    message = (
        f"`guidance_interval` is {re.escape(str(list(interval)))}; it must be the smallest and the largest .* 0 to 999"
    )
    with pytest.raises(UserError, match=message):
        TrainConfig(guidance_scale=2.0, guidance_interval=interval)
    sampling = TrainConfig(guidance_scale=2.0, guidance_interval=(200, 700)).sampling(has_classes=True)
    assert (sampling["guidance_scale"], sampling["guidance_interval"]) == (2.0, [200, 700])


@pytest.mark.parametrize("name", ["learning_rate", "max_grad_norm", "vlb_weight", "min_snr_gamma"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_positive_numbers(name, value):
    with pytest.raises(UserError, match=f"`{name}` is {value}; it must be a positive number"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(("name", "refused"), [
    ("weight_decay", (-0.1, math.nan, math.inf)), ("dropout", (-0.1, 1.0, math.nan)), ("class_dropout", (-0.1, 1.0)),
    ("eta", (-0.1, 1.1, math.nan)), ("seed", (-1, 4_000_000_001)),
])  # fmt: skip
def test_ranges(name, refused):
    for value in refused:
        with pytest.raises(UserError, match=f"`{name}` is {value}"):
            TrainConfig(**{name: value})
    assert getattr(TrainConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name):
    with pytest.raises(
        UserError, match=f"`{name}` is 'other'; it must be one of {next(filter(None, CHOICES[name]))}, "
    ):
        TrainConfig(**{name: "other"})
    assert getattr(TrainConfig(), name) in CHOICES[name]


@pytest.mark.parametrize(
    "name",
    ["dataset_name", "split", "output_dir", "tracker_project", "dataset_config", "image_column", "label_column",
     "cache_dir", "validation_split"],
)  # fmt: skip
def test_names_are_not_blank(name):
    with pytest.raises(UserError, match=f"`{name}` is ' '; it must be"):
        TrainConfig(**{name: " "})


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_null_is_for_keys_that_may_be_left_open(field):
    if field.default is None or field.name == "attention_head_dim":
        assert getattr(TrainConfig(**{field.name: None}), field.name) is None
    else:
        with pytest.raises(UserError, match=rf"`{field.name}` is null; leave it out for the default, [\w'\[{{]"):
            TrainConfig(**{field.name: None})


CONTRADICTIONS = [
    (ZERO_SNR, "`rescale_betas_zero_snr` is True and `prediction_type` is 'epsilon'.*--prediction_type v_prediction"),
    (ZERO_SNR | V | {"loss_weighting": "min_snr"}, "`loss_weighting` is 'min_snr' and .*the weight at t = T is 0 for v_pred"),
    (ZERO_SNR | {"prediction_type": "sample", "loss_weighting": "snr"}, "`loss_weighting` is 'snr'.*is 0 for sample"),
    (LEARNED, "`variance_type` is 'learned_range' and `objective` is 'simple', .*--objective hybrid"),
    ({"objective": "hybrid"}, "`objective` is 'hybrid' and `variance_type` is 'fixed_small'.*--variance_type learned_range"),
    ({"objective": "vlb", "loss_weighting": "snr"}, "`loss_weighting` is 'snr' and `objective` is 'vlb'.*loss_weighting none"),
    ({"random_crop": 4}, "`random_crop` is 4 pixels more than `resolution`, which is left out; add --resolution"),
    ({"resolution": 0}, "`resolution` is 0; it must be at least 1"),
    ({"resolution": (32, 0)}, r"`resolution` is \[32, 0\]"),
    ({"image_column": "a", "label_column": "a"}, "`label_column` is 'a', the same as `image_column`"),
    ({"streaming": True, "validation_split": "train[90%:]"}, r"`validation_split` is 'train\[90%:\]', a part of a split"),
    ({"streaming": True, "split": "train[:50%]"}, r"`split` is 'train\[:50%\]', a part of a split, which a stream"),
    ({"batch_size": 10, "gradient_accumulation_steps": 4}, "`batch_size` is 10; .*gradient_accumulation_steps = 4"),
    ({"max_train_steps": 50}, "`warmup_steps` is 100; it must be at most max_train_steps = 50; add --warmup_steps 5"),
    ({"eta": 0.0, "sampler": "sde-dpm++"}, "`eta` is 0.0 and `sampler` is 'sde-dpm[+][+]', which has its own noise; leave"),
    ({"eta": 0.5, "sampler": "dpm++"}, "`eta` is 0.5 and `sampler` is 'dpm[+][+]', which adds no noise; leave eta out"),
    ({"sampler": "euler"}, "`sampler` is 'euler'; it must be one of ddpm, ddim, dpm"),
    ({"num_inference_steps": 100, "num_train_timesteps": 50}, "`num_inference_steps` is 100; .*num_train_timesteps = 50"),
    ({"timestep_sampling": "importance", "batch_size": 8}, "`timestep_sampling` is 'importance'.*= 6400 images are fewer "
     "than 10000; train longer"),
    ({"ema_decays": ()}, "`ema_decays` and `ema_stds` are both empty"),
    ({"ema_decays": (0.9, 1.0)}, r"`ema_decays` is \[0.9, 1.0\]; it must be numbers from 0 to below 1"),
    ({"ema_decays": (-0.1,)}, "`ema_decays` is"),
    ({"ema_decays": (0.9, 0.9)}, "`ema_decays` is .* different numbers"),
    ({"ema_stds": (0.05, 0.3)}, r"`ema_stds` is \[0.05, 0.3\]; it must be numbers above 0 and below 1/√12"),
    ({"ema_stds": (0.0,)}, "`ema_stds` is"),
    ({"ema_stds": (0.1, 0.1)}, "`ema_stds` is .* different numbers"),
    ({"report_to": ("mlflow",)}, r"`report_to` is \['mlflow'\]; it must be a list of tensorboard, wandb, trackio"),
    ({"report_to": ("wandb", "wandb")}, "`report_to` is .*different trackers"),
    ({"push_to_hub": "model"}, "`push_to_hub` is 'model'; it must be USER/NAME"),
    ({"license": "My License"}, "`license` is 'My License'"),
    ({"block_out_channels": ()}, r"`block_out_channels` is \[\]; it must be a list of at least one number"),
    ({"block_out_channels": (8, 12)}, "`block_out_channels` is .* positive multiples of norm_num_groups = 8"),
    ({"block_out_channels": (8, 24), "attention_head_dim": 16}, "`block_out_channels` is .* multiples of attention_head_dim"),
    ({"unet_options": {"out_channels": 6}}, "`unet_options` has out_channels, which is set by the data and `variance_type`"),
    (LEARNED | {"objective": "hybrid", "unet_options": {"out_channels": 3}}, "`unet_options` has out_channels"),
    ({"unet_options": {"time_embedding_type": "fourier"}}, "time_embedding_type = 'fourier'.*use positional or learned"),
    ({"resolution": 20, "block_out_channels": (8, 8, 8, 8)}, "`block_out_channels` has 4 levels, .*20×20 images can be halved "
     "2 times. Use at most 3 levels, or --resolution 16"),
    ({"resolution": (32, 20), "block_out_channels": (8, 8, 8, 8)}, r"20×32 images.*or --resolution '\[32,16\]'"),
    ({"resolution": 32, "attention_resolutions": (8,)}, r"`attention_resolutions` is \[8\], .*the heights are 32, 16"),
    ({"resolution": (32, 64), "attention_resolutions": (64,)}, "no level of the U-Net has height 64; the heights are 32, 16"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), CONTRADICTIONS, ids=[",".join(values) for values, _ in CONTRADICTIONS])
def test_contradictions_are_told_with_the_keys_and_the_remedy(values, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("name", "value", "together_with"),
    [
        ("shuffle_buffer", 50, {"streaming": True}),
        ("validation_images", 50, {"validation_split": "test"}),
        ("validation_every", 50, {"validation_split": "test"}),
        ("vlb_weight", 0.01, LEARNED | {"objective": "hybrid"}),
        ("min_snr_gamma", 3.0, {"loss_weighting": "min_snr"}),
        ("importance_uniform_share", 0.5, {"timestep_sampling": "importance"}),
        ("ema_snapshot_every", 50, {"ema_stds": (0.05, 0.1)}),
        ("guidance_interval", (200, 700), {"guidance_scale": 2.0}),
        ("beta_start", 2e-4, {}),
        ("beta_end", 0.03, {}),
    ],
)
def test_what_would_have_no_effect_is_refused(name, value, together_with):
    assert getattr(TrainConfig(**{name: value}, **together_with), name) == value
    without = {"beta_schedule": "squaredcos_cap_v2"} if name.startswith("beta") else {}
    with pytest.raises(
        UserError,
        match=f"`{name}` is {re.escape(str(list(value) if isinstance(value, tuple) else value))}, which would have no effect; add --.*, or leave {name} out",
    ):
        TrainConfig(**{name: value}, **without)


@pytest.mark.parametrize(
    "values",
    [
        LEARNED | {"objective": "vlb"},
        LEARNED | {"objective": "hybrid", "loss_weighting": "min_snr"},
        {"objective": "vlb"},  # a fixed variance: weights of the squared error
        {"objective": "simple_and_vlb", "vlb_weight": 0.1},
        LEARNED | {"objective": "simple_and_vlb", "vlb_weight": 0.1},
        ZERO_SNR | V,
        ZERO_SNR | V | LEARNED | {"objective": "hybrid"},
        {"loss_weighting": "min_snr"},
        {"timestep_sampling": "importance"},
        {"timestep_sampling": "stratified", "batch_size": 1},
        {"ema_decays": (), "ema_stds": (0.05, 0.1, 0.25)},
        {"ema_decays": (0.0,)},
        {"random_crop": 4, "resolution": (28, 32)},
        {"streaming": True, "split": "train+test", "validation_split": "test"},
        {"block_out_channels": (8, 20), "norm_num_groups": 4, "unet_options": {"add_attention": False}},
        {"block_out_channels": (8, 20), "norm_num_groups": 4, "attention_head_dim": None},
        {"block_out_channels": (8, 20), "norm_num_groups": 4, "unet_options": {"mid_block_type": None}},
        {"class_conditional": False, "class_dropout": 0.2},
    ],
    ids=lambda values: ",".join(values),
)
def test_what_works_together_is_accepted(values):
    assert all(getattr(TrainConfig(**values), name) == value for name, value in values.items())


def test_the_width_of_an_average_has_a_positive_exponent():
    """Below the bound a γ > 0 has that width, and above it none: the width falls with γ from 1/√12 at γ = 0."""

    def width(exponent: float) -> float:  # by the moments of the density (γ+1) τ^γ on [0, 1]
        mean, square = (exponent + 1) / (exponent + 2), (exponent + 1) / (exponent + 3)
        return math.sqrt(square - mean**2)

    widths = [width(exponent / 10) for exponent in range(1000)]
    assert all(later < sooner for sooner, later in itertools.pairwise(widths))
    # Half an ulp of a difference of two numbers near 1/3 and 1/4, under a root at 1/12: 2⁻⁵⁴ · √12 / 2 · 2 < 1e-15.
    assert width(0) == pytest.approx(LARGEST_EMA_STD, rel=0, abs=1e-15)


def test_a_tracker_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # nothing is installed there
    for package in ("tensorboard", "tensorboardX", "wandb", "trackio"):  # and nothing was imported before
        monkeypatch.delitem(sys.modules, package, raising=False)
    for tracker, package in (("tensorboard", "tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")):
        with pytest.raises(UserError, match=f"`report_to` has {tracker}, .*not installed; run `pip install {package}`"):
            TrainConfig(report_to=(tracker,))
    for package in ("tensorboardX", "wandb"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    assert TrainConfig(report_to=("tensorboard", "wandb")).report_to == ("tensorboard", "wandb")


def test_what_other_keys_set_are_arguments_of_the_network():
    assert SET_BY.keys() <= inspect.signature(UNet2DModel.__init__).parameters.keys()
    for name in SET_BY:
        with pytest.raises(
            UserError, match=f"`unet_options` has {name}, which is set by .*leave it out of unet_options"
        ):
            TrainConfig(unet_options={name: 1})


def test_levels_with_attention_are_found_by_height():
    config = TrainConfig(block_out_channels=(8, 16, 24), attention_resolutions=(16, 4))
    assert attention_levels(config, 16, 24) == [True, False, True]
    for channels, options in (((12, 16, 24), {}), ((8, 16, 20), {}), ((8, 16, 20), {"add_attention": False})):
        values = {"block_out_channels": channels, "norm_num_groups": 4, "unet_options": options}
        with pytest.raises(UserError, match="multiples of attention_head_dim = 8"):
            attention_levels(dataclasses.replace(config, **values), 16, 24)


@pytest.mark.parametrize("side", range(1, 65))
def test_the_advice_on_sizes_can_be_followed(side):
    """Of every size: with as many levels as are allowed it works, with one more it does not, and the remedy is a remedy."""
    allowed = 1 + (side & -side).bit_length() - 1  # the power of two in the side, plus the level that is not halved
    assert TrainConfig(resolution=side, block_out_channels=(8,) * allowed).resolution == side
    with pytest.raises(UserError, match=f"Use at most {allowed} levels") as error:
        TrainConfig(resolution=side, block_out_channels=(8,) * (allowed + 1))
    advised = int(str(error.value).rpartition("--resolution ")[2].rstrip("."))
    assert TrainConfig(resolution=advised, block_out_channels=(8,) * (allowed + 1)).resolution == advised
