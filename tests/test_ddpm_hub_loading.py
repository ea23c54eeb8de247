"""Loading a folder: what is wrong with it is said before anything is allocated, opened or executed."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import make_pipeline, seeds

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_hub_layout import MODEL_INDEX, SCHEDULER_CONFIG, UNET_CONFIG, WEIGHTS

SPLIT = "unet/diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading") / "model"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edit(path, **changes):
    def apply(folder):
        content = json.loads((folder / path).read_text()) | changes
        (folder / path).write_text(json.dumps(content))

    return apply


def write(path, text):
    return lambda folder: (folder / path).write_text(text)


def reweigh(change):
    def apply(folder):
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        weights["conv_out.bias"] = change(weights["conv_out.bias"])
        safetensors.torch.save_file(weights, folder / WEIGHTS)

    return apply


def split(name):
    return write(SPLIT, json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))


DEFECTS = {
    "an index that is a list": (write(MODEL_INDEX, "[]"), MODEL_INDEX, "holds a list"),
    "an index that is too deep": (write(MODEL_INDEX, "[" * 100_000), MODEL_INDEX, "is not JSON"),
    "a part that is a number": (edit(MODEL_INDEX, unet=3), "`unet` of", "is a None"),
    "names in a list": (edit(MODEL_INDEX, id2label=["zero"]), "`id2label` is", "texts for 0 to 2"),
    "a number that is none": (edit(UNET_CONFIG, dropout=float("nan")), UNET_CONFIG, "NaN is no finite number"),
    "a number without end": (write(SCHEDULER_CONFIG, '{"beta_end": 1e999}'), SCHEDULER_CONFIG, "1e999 is no finite number"),
    "a million channels": (edit(UNET_CONFIG, block_out_channels=[10**6] * 2), WEIGHTS, "does not belong to unet/config.json"),
    "layers without end": (edit(UNET_CONFIG, layers_per_block=10**9), UNET_CONFIG, "may have 1000 layers"),
    "a side without end": (edit(UNET_CONFIG, sample_size=10**9), UNET_CONFIG, "sample_size = 1000000000; it must be"),
    "padding that does not fit": (edit(UNET_CONFIG, downsample_padding=7), UNET_CONFIG, "cannot be called"),
    "another library": (edit(UNET_CONFIG, quantization_config={}), UNET_CONFIG, "another library"),
    "timesteps without end": (edit(SCHEDULER_CONFIG, num_train_timesteps=10**11), SCHEDULER_CONFIG, "from 1 to 1048576"),
    "another class": (edit(SCHEDULER_CONFIG, _class_name="DDIMScheduler"), SCHEDULER_CONFIG, "names the class 'DDIMScheduler'"),
    "weights of whole numbers": (reweigh(lambda bias: bias.to(torch.int32)), WEIGHTS, "'conv_out.bias' as I32"),
    "weights that are none": (reweigh(lambda bias: bias * torch.nan), WEIGHTS, "no finite numbers: 'conv_out.bias'"),
    "split weights in a pickle": (split("evil.bin"), SPLIT, "names 'evil.bin'"),
    "split weights elsewhere": (split("../evil.safetensors"), SPLIT, "names '../evil.safetensors'"),
    "split weights that are not there": (split("x.safetensors"), "unet/x.safetensors", "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_told(folder, defect):
    damage, named, message = DEFECTS[defect]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        DDPMHubPipeline.from_pretrained(folder)
    said = str(caught.value)
    assert named in said
    assert message in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "RecursionError"),
        ('"scheduler"', "it holds a str"),  # diffusers would look for a folder of that name
        ('{"_use_default_values": 5}', "TypeError"),
        ('{"beta_schedule": []}', "`beta_schedule` is []"),
        ('{"clip_sample_range": 1e300}', "`clip_sample_range` is 1e+300"),
        ('{"trained_betas": [%s]}' % 10**400, "`trained_betas` is "),
    ],
)
def test_a_scheduler_that_is_none_is_told(folder, text, reason):
    (folder / SCHEDULER_CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"scheduler_config.json in .* describes no DDPMHubScheduler") as caught:
        DDPMHubScheduler.from_pretrained(folder, subfolder="scheduler")
    assert reason in str(caught.value)


def test_weights_elsewhere_in_the_folder_are_not_taken(saved, folder):
    """diffusers looks beside `model_index.json` first."""
    weights = {name: weight * 2 for name, weight in safetensors.torch.load_file(folder / WEIGHTS).items()}
    safetensors.torch.save_file(weights, folder / Path(WEIGHTS).name)
    expected, loaded = (DDPMHubPipeline.from_pretrained(place).unet.state_dict() for place in (saved, folder))
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)


def test_split_weights_load(saved, tmp_path):
    expected = DDPMHubPipeline.from_pretrained(saved)
    expected.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / SPLIT).is_file()
    assert not (tmp_path / WEIGHTS).exists()
    loaded = DDPMHubPipeline.from_pretrained(tmp_path)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    assert torch.equal(loaded(generator=seeds(1), **options).images, expected(generator=seeds(1), **options).images)
