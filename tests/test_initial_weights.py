"""`--init_from`: training begins with the weights of another model, or is refused before the data is read."""

import dataclasses
import json
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from build_model import build_scheduler, build_unet
from conftest import run_python
from hub_server import HubServer
from initial_weights import copy_weights, earlier_training, load_initial_model, other_schedule
from output_folder import check_output
from safetensors.torch import load_file
from train_config import TrainConfig, UserError
from train_runs import SMALL, assert_same, signalled

from ddpm_hub import DDPMHubPipeline
from ddpm_hub.hub import export_folder

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def data(*shape: int, classes: int = 10) -> SimpleNamespace:
    return SimpleNamespace(image_shape=shape, class_names=[str(number) for number in range(classes)])


def config(folder, **values) -> TrainConfig:
    return TrainConfig(**{"block_out_channels": (8, 16), "init_from": str(folder), **values})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of ten classes whose weights are all different from those that training begins with."""
    folder = tmp_path_factory.mktemp("source") / "model"
    own = TrainConfig(block_out_channels=(8, 16))
    torch.manual_seed(1)
    unet = build_unet(own, data(1, 8, 8))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.1)
    DDPMHubPipeline(unet, build_scheduler(own), {n: str(n) for n in range(10)}).save_pretrained(folder)
    return folder


def test_what_went_into_the_weights_is_added_up(source, tmp_path):
    """A chain of three trainings; a folder that does not say adds nothing, nor does one that is gone."""
    shutil.copytree(source, tmp_path / "model")
    assert earlier_training(config(tmp_path / "model")) == {}
    (tmp_path / "model" / "config.yaml").write_text("batch_size: 32\n", encoding="utf-8")
    own = {"steps": 10, "seconds": 2.5, "earlier": {"steps": 1, "images": 64, "seconds": 1.0}}
    (tmp_path / "model" / "metrics.json").write_text(json.dumps({"training": own}), encoding="utf-8")
    assert earlier_training(config(tmp_path / "model")) == {"steps": 11, "images": 384, "seconds": 3.5}
    shutil.rmtree(tmp_path / "model")
    assert earlier_training(config(tmp_path / "model")) == {}
    assert earlier_training(TrainConfig()) == {}


@pytest.mark.parametrize("classes", [10, 9, 12, 0])
def test_all_weights_are_taken_over(source, classes):
    """Other classes than the source's begin as its null class, the last."""
    fresh = build_unet(config(source), data(1, 16, 8, classes=classes))
    assert copy_weights(config(source), load_initial_model(config(source)), fresh) == 0
    stored, taken = load_file(source / WEIGHTS), fresh.state_dict()
    if classes == 0:
        stored.pop("class_embedding.weight")
    elif classes != 10:
        stored["class_embedding.weight"] = stored["class_embedding.weight"][-1:].repeat(classes + 1, 1)
    assert taken.keys() == stored.keys()
    assert [name for name in stored if not torch.equal(stored[name], taken[name])] == []


def test_a_model_without_classes_learns_some_from_where_it_is(tmp_path):
    """At first the classes change nothing of what it predicts."""
    own = TrainConfig(block_out_channels=(8, 16))
    plain = build_unet(own, data(1, 8, 8, classes=0))
    torch.nn.init.normal_(plain.conv_out.weight)
    DDPMHubPipeline(plain, build_scheduler(own)).save_pretrained(tmp_path)
    unet = build_unet(config(tmp_path), data(1, 8, 8))
    copy_weights(config(tmp_path), load_initial_model(config(tmp_path)), unet)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 500])
    with torch.no_grad():
        assert torch.equal(unet(x, t, torch.tensor([3, 10])).sample, plain(x, t).sample)


@pytest.mark.parametrize("kind", [{"torch_dtype": torch.float16}, {"sample_size": None}], ids=str)
def test_any_precision_and_size(source, tmp_path, kind):
    pipeline = DDPMHubPipeline.from_pretrained(source, torch_dtype=kind.get("torch_dtype"))
    if "sample_size" in kind:
        pipeline.unet.register_to_config(sample_size=None)
    pipeline.save_pretrained(tmp_path)
    unet = build_unet(config(tmp_path), data(1, 8, 8))
    copy_weights(config(tmp_path), load_initial_model(config(tmp_path)), unet)
    stored = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in unet.state_dict().items())


def test_attention_stays_at_its_level_where_the_images_are_of_another_size(tmp_path):
    own = TrainConfig(block_out_channels=(8, 16), attention_resolutions=(8,))
    DDPMHubPipeline(build_unet(own, data(1, 16, 16)), build_scheduler(own)).save_pretrained(tmp_path)
    fits = config(tmp_path, attention_resolutions=(4,))
    copy_weights(fits, load_initial_model(fits), build_unet(fits, data(1, 8, 8)))
    other = config(tmp_path, attention_resolutions=(8,))
    source = load_initial_model(other)  # as long as no image was seen, either may be right
    with pytest.raises(UserError, match=r"down_block_types is .*'AttnDownBlock2D'\] there and \['AttnDownBlock2D', 'D"):
        copy_weights(other, source, build_unet(other, data(1, 8, 8)))


MORE = [
    {"layers_per_block": 2},
    {"attention_resolutions": (4,)},
    {"layers_per_block": 2, "attention_resolutions": (4, 8)},
]


@pytest.mark.parametrize("attention", [(), (8,)], ids=str)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("more", MORE, ids=str)
def test_a_larger_network_begins_as_the_model_itself(tmp_path, layers, attention, more):
    """What is new adds zeros, and its shortcuts multiply by one: bitwise, but that attention changes the order of sums, each of
    less than a thousand terms about one in float64. After a step of training all of it has a gradient."""
    own = TrainConfig(
        block_out_channels=(8, 16, 24), norm_num_groups=4, layers_per_block=layers, attention_resolutions=attention
    )
    small = build_unet(own, data(1, 16, 16))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_(std=0.1)
    DDPMHubPipeline(small, build_scheduler(own), {n: str(n) for n in range(10)}).save_pretrained(tmp_path)
    larger = dataclasses.replace(
        own,
        init_from=str(tmp_path),
        layers_per_block=layers + more.get("layers_per_block", 1) - 1,
        attention_resolutions=tuple({*attention, *more.get("attention_resolutions", ())}),
    )
    unet = build_unet(larger, data(1, 16, 16))
    new = copy_weights(larger, load_initial_model(larger), unet)
    assert new == unet.num_parameters() - small.num_parameters() > 0

    unet, small = unet.double(), small.double()
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, classes = torch.tensor([1, 500]), torch.tensor([3, 10])
    with torch.no_grad():
        here, there = unet(x, t, classes).sample, small(x, t, classes).sample
    rounding = 1000 * torch.finfo(torch.float64).eps if "attention_resolutions" in more else 0
    assert torch.allclose(here, there, rtol=0, atol=rounding)
    steps = torch.optim.SGD(unet.parameters(), 0.1)
    for _ in range(2):
        steps.zero_grad()
        unet(x, t, classes).sample.square().sum().backward()
        steps.step()
    assert [name for name, parameter in unet.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize(
    ("fewer", "message"),
    [
        ({"layers_per_block": 1}, "layers_per_block is 2 there and 1 here"),
        ({"attention_resolutions": ()}, r"down_block_types is \['DownBlock2D', 'AttnDownBlock2D'\] there and \['DownB"),
    ],
)
def test_a_smaller_network_is_refused(tmp_path, fewer, message):
    own = TrainConfig(block_out_channels=(8, 16), layers_per_block=2, attention_resolutions=(4,), resolution=8)
    DDPMHubPipeline(build_unet(own, data(1, 8, 8)), build_scheduler(own)).save_pretrained(tmp_path)
    smaller = dataclasses.replace(own, init_from=str(tmp_path), **fewer)
    with pytest.raises(UserError, match=message):
        load_initial_model(smaller)


def test_a_larger_network_that_would_lose_weights_is_refused(tmp_path):
    """`UpBlock2D` has a convolution where `AttnUpBlock2D` would have a residual block."""
    own = TrainConfig(block_out_channels=(8, 16), unet_options={"upsample_type": "resnet"})
    DDPMHubPipeline(build_unet(own, data(1, 8, 8)), build_scheduler(own)).save_pretrained(tmp_path)
    larger = dataclasses.replace(own, init_from=str(tmp_path), attention_resolutions=(4,))
    with pytest.raises(
        UserError, match=r"have no place in this one: up_blocks\.0\.upsamplers\.0\.conv\.bias; leave `attention"
    ):
        copy_weights(larger, load_initial_model(larger), build_unet(larger, data(1, 8, 8)))


def test_another_schedule_is_named(source):
    model = load_initial_model(config(source))
    assert other_schedule(config(source), model) is None
    assert other_schedule(config(source, beta_end=0.03, num_train_timesteps=50), model) == (
        "num_train_timesteps is 1000 there and 50 here; beta_end is 0.02 there and 0.03 here"
    )


@pytest.mark.parametrize("inside", ["", "checkpoints/step"])
def test_the_source_may_not_lie_where_the_run_goes(tmp_path, inside):
    """It would be moved aside, and the same command would not find it again."""
    with pytest.raises(UserError, match=r"`output_dir` is .*, where `init_from` = .* lies; choose another folder"):
        check_output(config(tmp_path / "run" / inside, output_dir=str(tmp_path / "run")))
    check_output(config(tmp_path / "run", output_dir=str(tmp_path / "other")))
    check_output(config(tmp_path / "run", output_dir=str(tmp_path / "run" / "refined")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_out_channels": (8, 24)}, r"another one: block_out_channels is \[8, 16\] there and \[8, 24\] here"),
        ({"image_mode": "RGB"}, "in_channels is 1 there and 3 here; out_channels is 1 there and 3 here"),
        ({"block_out_channels": (8, 16, 16)}, r"block_out_channels is \[8, 16\] there and \[8, 16, 16\] here"),
        ({"norm_num_groups": 4}, "norm_num_groups is 8 there and 4 here"),
        ({"unet_options": {"freq_shift": 1}}, "freq_shift is 0 there and 1 here"),
        ({"variance_type": "learned_range", "objective": "hybrid"}, "out_channels is 1 there and 2 here"),
        ({"prediction_type": "v_prediction"}, "`prediction_type` is 'v_prediction', but the network of `init_from` = .* "
         "predicts 'epsilon'; add --prediction_type epsilon"),
        ({"init_from": "no/such/folder/here"}, "`init_from` is 'no/such/folder/here', which cannot be loaded: "),
        ({"init_from": " "}, "`init_from` is ' '; it must be a name"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_data(source, values, message):
    with pytest.raises(UserError, match=message):
        load_initial_model(config(source, **values))


def test_images_of_other_channels_are_refused_by_name(source):
    unet = build_unet(config(source), data(3, 8, 8))
    with pytest.raises(UserError, match="in_channels is 1 there and 3 here; out_channels is 1 there and 3 here"):
        copy_weights(config(source), load_initial_model(config(source)), unet)


def test_a_mistake_costs_one_line_and_no_data(trains, source, tmp_path):
    arguments = [*SMALL, "--init_from", source, "--norm_num_groups", "4", "--dataset_name", "no/such/data"]
    said = trains.run(*arguments, "--output_dir", tmp_path / "run").error("train.py")
    assert "norm_num_groups is 8 there and 4 here" in said
    assert not (tmp_path / "run").exists()


class TestRuns:
    def test_the_first_steps_are_of_those_weights(self, trains, source, tmp_path):
        """At a vanishing rate the trained model is the source: AdamW moves a weight by no more than rate × (1 + decay) a step."""
        arguments = ["--init_from", source, "--learning_rate", "1e-12", "--output_dir", tmp_path / "run"]
        done = trains.run(*SMALL, *arguments)
        assert done.returncode == 0, done.stderr
        before, after = load_file(source / WEIGHTS), load_file(tmp_path / "run" / WEIGHTS)
        assert before.keys() == after.keys()
        # A float32 below 1 is moved by nothing less than 2^-25; averages of equal numbers may round by as much.
        assert max((before[name] - after[name]).abs().max() for name in before) < 2**-22

    def test_it_goes_on_without_the_source(self, trains, source, tmp_path):
        moved = tmp_path / "moved"
        shutil.copytree(source, moved)
        arguments = [*SMALL, "--init_from", moved, "--checkpoint_every", "3"]
        assert trains.run(*arguments, "--output_dir", tmp_path / "quiet").returncode == 0
        stopped = trains.run(*arguments, "--output_dir", tmp_path / "stopped", patch=signalled(5))
        assert stopped.returncode == 75, stopped.stderr
        shutil.rmtree(moved)
        done = trains.run(*arguments, "--output_dir", tmp_path / "stopped")
        assert done.returncode == 0, done.stderr
        assert_same(tmp_path / "stopped", tmp_path / "quiet")

    def test_a_kill_before_the_first_checkpoint(self, trains, source, tmp_path):
        arguments = [*SMALL, "--init_from", source]
        assert trains.run(*arguments, "--output_dir", tmp_path / "quiet").returncode == 0
        killed = trains.run(*arguments, "--output_dir", tmp_path / "run", patch=signalled(3, signal.SIGKILL))
        assert killed.returncode == -signal.SIGKILL
        assert trains.run(*arguments, "--output_dir", tmp_path / "run").returncode == 0
        assert_same(tmp_path / "run", tmp_path / "quiet")

    def test_two_processes_begin_with_the_same(self, trains, source, tmp_path):
        arguments = [*SMALL, "--init_from", source, "--learning_rate", "1e-12", "--output_dir", tmp_path / "run"]
        done = trains.run(*arguments, processes=2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Begins with the weights of") == 1
        before, after = load_file(source / WEIGHTS), load_file(tmp_path / "run" / WEIGHTS)
        assert max((before[name] - after[name]).abs().max() for name in before) < 2**-22

    def test_a_dry_run_looks_at_it_and_writes_nothing(self, trains, source, tmp_path):
        arguments = [*SMALL, "--output_dir", tmp_path / "run", "--dry_run", "true", "--init_from"]
        assert trains.run(*arguments, source).returncode == 0
        assert "`init_from` is 'no/model'" in trains.run(*arguments, "no/model").error("train.py")
        assert not (tmp_path / "run").exists()

    def test_what_is_published_tells_of_no_folder(self, trains, source, tmp_path):
        secret = tmp_path / "client" / "secret"
        shutil.copytree(source, secret)
        done = trains.run(*SMALL, "--init_from", secret, "--output_dir", tmp_path / "run")
        assert done.returncode == 0, done.stderr
        export_folder(tmp_path / "run", tmp_path / "made")
        assert "init_from: secret\n" in (tmp_path / "made" / "config.yaml").read_text()
        assert " steps from the weights of secret on " in (tmp_path / "made" / "README.md").read_text()
        assert "base_model" not in (tmp_path / "made" / "README.md").read_text()
        assert not [f for f in (tmp_path / "made").rglob("*") if f.is_file() and b"client" in f.read_bytes()]

    def test_a_model_of_the_hub(self, trains, source, tmp_path):
        with HubServer() as hub:
            hub.add_user("ada")
            hub.add_repo("ada/digits", private=True)
            files = {str(file.relative_to(source)): file.read_bytes() for file in source.rglob("*") if file.is_file()}
            hub.commit("ada/digits", files)
            environment = hub.environment(hub.add_token("ada"), tmp_path / "home")
            arguments = ["--init_from", "ada/digits", "--output_dir", str(tmp_path / "run")]
            done = run_python("training/train.py", *SMALL, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        assert trains.run(*SMALL, "--init_from", source, "--output_dir", tmp_path / "local").returncode == 0
        assert_same(tmp_path / "run", tmp_path / "local")
        card = (tmp_path / "run" / "README.md").read_text()
        assert "base_model: ada/digits\n" in card
        assert "init_from: ada/digits\n" in card
