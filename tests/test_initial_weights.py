"""`--init_from`: training begins with the weights of another model, or is refused before the data is read."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from build_model import build_scheduler, build_unet
from conftest import run_python
from hub_server import HubServer
from initial_weights import copy_weights, load_initial_model
from safetensors.torch import load_file
from train_config import TrainConfig, UserError
from train_runs import SMALL, assert_same, signalled

from ddpm_hub import DDPMHubPipeline

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


@pytest.mark.parametrize("classes", [10, 9, 0])
def test_all_weights_are_taken_over_but_those_of_other_classes(source, classes):
    torch.manual_seed(2)
    fresh = build_unet(config(source), data(1, 16, 8, classes=classes))
    own = fresh.class_embedding.weight.clone() if classes else None
    copy_weights(config(source), load_initial_model(config(source)), fresh)
    stored, taken = load_file(source / WEIGHTS), fresh.state_dict()
    if classes != 10:
        stored.pop("class_embedding.weight")
        if classes:
            assert torch.equal(taken.pop("class_embedding.weight"), own)
    assert taken.keys() == stored.keys()
    assert [name for name in stored if not torch.equal(stored[name], taken[name])] == []


def test_classes_may_be_new(source, tmp_path):
    """A model without classes is fine-tuned to have some."""
    plain = tmp_path / "plain"
    without = TrainConfig(block_out_channels=(8, 16))
    DDPMHubPipeline(build_unet(without, data(1, 8, 8, classes=0)), build_scheduler(without)).save_pretrained(plain)
    unet = build_unet(config(plain), data(1, 8, 8))
    own = unet.class_embedding.weight.clone()
    copy_weights(config(plain), load_initial_model(config(plain)), unet)
    assert torch.equal(unet.class_embedding.weight, own)
    assert torch.equal(unet.conv_in.weight, load_file(plain / WEIGHTS)["conv_in.weight"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_out_channels": (8, 24)}, r"another one: block_out_channels is \[8, 16\] there and \[8, 24\] here"),
        ({"attention_resolutions": (4,)}, r"down_block_types is .* there and \['DownBlock2D', 'AttnDownBlock2D'\] here"),
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
