"""What a call is sampled with: what it says, what is stored with the model, what is usual."""

import json

import numpy as np
import pytest
import torch
from conftest import make_pipeline, run_python

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_hub_layout import check_model
from ddpm_hub.ddpm_sampling_settings import (
    SETTINGS,
    USUAL,
    SamplingSettings,
    checked_sampling,
    settings_for_call,
)
from ddpm_hub.metrics_file import SAMPLING_FORM

STORED = {"sampler": "dpm++", "num_inference_steps": 12, "guidance_scale": 2.0}
GUIDED = {"guidance_scale": 2.0, "guidance_interval": [100, 600]}


def test_figures_name_the_settings_that_there_are():
    assert tuple(SAMPLING_FORM) == SETTINGS


def chosen(stored, has_labels=True, usual=USUAL, samplers=("ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"), **given):
    return settings_for_call(stored, dict.fromkeys(SETTINGS) | given, has_labels, usual, samplers)


class TestSettingsForCall:
    def test_nothing_stored_and_nothing_said_is_usual(self):
        assert chosen(None) == USUAL == SamplingSettings("ddpm", None, None, 1.0)

    def test_what_is_stored(self):
        assert chosen(STORED) == SamplingSettings("dpm++", 12, None, 2.0)
        assert chosen({"num_inference_steps": 50, "eta": 0.3}) == SamplingSettings("ddpm", 50, 0.3, 1.0)

    def test_what_is_said_goes_first(self):
        assert chosen(STORED, num_inference_steps=5, guidance_scale=1.0) == SamplingSettings("dpm++", 5, None, 1.0)

    def test_steps_and_eta_belong_to_their_sampler(self):
        assert chosen(STORED, sampler="ddim") == SamplingSettings("ddim", None, None, 2.0)
        assert chosen({"num_inference_steps": 50, "eta": 0.0}, sampler="ddim") == SamplingSettings("ddim")
        assert chosen(STORED, sampler="dpm++") == SamplingSettings("dpm++", 12, None, 2.0)

    def test_without_classes_nothing_is_guided(self):
        assert chosen(STORED, has_labels=False).guidance_scale == 1.0
        assert chosen(GUIDED, has_labels=False) == USUAL

    def test_the_stored_interval_is_that_of_every_guidance(self):
        assert chosen(GUIDED) == SamplingSettings("ddpm", None, None, 2.0, (100, 600))
        assert chosen(GUIDED, guidance_scale=3.0) == SamplingSettings("ddpm", None, None, 3.0, (100, 600))
        assert chosen(GUIDED, guidance_interval=(0, 999)) == SamplingSettings("ddpm", None, None, 2.0, (0, 999))
        assert chosen(GUIDED, guidance_scale=1.0) == USUAL

    def test_a_way_that_cannot_use_the_stored_sampler_has_its_own(self):
        usual = SamplingSettings("ddpm", 100)
        assert chosen(STORED, usual=usual, samplers=("ddpm", "ddim")) == SamplingSettings("ddpm", 100, None, 2.0)
        own = {"sampler": "ddim", "num_inference_steps": 30}
        assert chosen(own, usual=usual, samplers=("ddpm", "ddim")) == SamplingSettings("ddim", 30)


class TestStored:
    def test_the_model_is_sampled_with_it_here_and_by_trust(self, tmp_path):
        plain = make_pipeline()
        pipeline = DDPMHubPipeline(
            plain.unet, plain.scheduler, plain.id2label, sampling={"num_inference_steps": 5, "eta": 0.0}
        )
        pipeline.set_progress_bar_config(disable=True)
        options = {"seed": 3, "class_labels": [0, 1], "output_type": "sample"}
        wanted = plain(sampler="ddim", num_inference_steps=5, **options).images
        assert torch.equal(pipeline(**options).images, wanted)
        pipeline.save_pretrained(tmp_path / "model")
        index = json.loads((tmp_path / "model" / "model_index.json").read_text())
        assert index["sampling"] == {"num_inference_steps": 5, "eta": 0.0}
        check_model(tmp_path / "model")
        loaded = DDPMHubPipeline.from_pretrained(tmp_path / "model")
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(loaded(**options).images, wanted)
        script = """
import sys
sys.modules["ddpm_hub"] = None
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
options = {"seed": 3, "class_labels": [0, 1], "output_type": "sample"}
torch.save(pipeline(**options).images, sys.argv[2])
pipeline.img2img(pipeline.inpaint(pipeline(seed=1).images, torch.ones(8, 8)).images, 0.5, sampler="dpm++")
"""
        environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        result = run_python("-c", script, str(tmp_path / "model"), str(tmp_path / "images.pt"), **environment)
        assert result.returncode == 0, result.stderr
        # Other threads share the sums there: float32 rounding, through five steps.
        torch.testing.assert_close(torch.load(tmp_path / "images.pt"), wanted, rtol=0, atol=1e-4)

    def test_the_stored_interval_is_guided(self, tmp_path):
        plain = make_pipeline()
        sampling = {"num_inference_steps": 10, "guidance_scale": 3.0, "guidance_interval": (np.int64(200), 600)}
        DDPMHubPipeline(plain.unet, plain.scheduler, plain.id2label, sampling).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["sampling"]["guidance_interval"] == [200, 600]
        loaded = DDPMHubPipeline.from_pretrained(tmp_path)
        options = {"seed": 3, "class_labels": [0, 1], "output_type": "sample"}
        guided = {"num_inference_steps": 10, "guidance_scale": 3.0}
        wanted = plain(**options, **guided, guidance_interval=(200, 600)).images
        assert torch.equal(loaded(**options).images, wanted)
        everywhere = loaded(**options, guidance_interval=(0, len(plain.scheduler) - 1)).images
        assert torch.equal(everywhere, plain(**options, **guided).images)
        assert not torch.equal(everywhere, wanted)

    def test_a_folder_whose_settings_are_wrong_says_so(self, tmp_path):
        make_pipeline().save_pretrained(tmp_path)
        file = tmp_path / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"sampling": {"sampler": "euler"}}))
        with pytest.raises(ValueError, match="`sampler` is 'euler'"):
            DDPMHubPipeline.from_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=r"model_index.json' does not fit the network: `sampler` is 'euler'; it must be one of"
        ):
            check_model(tmp_path)

    @pytest.mark.parametrize(
        ("stored", "message"),
        [
            ({"steps": 5}, r"`sampling` is \{'steps': 5\}; it must be a dictionary of sampler, num_inference_steps"),
            ([5], r"`sampling` is \[5\]"),
            ({"num_inference_steps": 0}, "`num_inference_steps` is 0"),
            ({"eta": 2}, "`eta` is 2"),
            ({"sampler": "unipc", "eta": 1.0}, "`eta` is 1.0, but `sampler` = 'unipc'"),
            ({"guidance_scale": -1}, "`guidance_scale` is -1"),
            ({"guidance_scale": 2, "guidance_interval": [5, 1]}, r"`guidance_interval` is \[5, 1\]; the smaller"),
            ({"guidance_scale": 2, "guidance_interval": [0, 1000]}, "`guidance_interval` is 1000; it must be .* 999"),
            ({"guidance_scale": 2, "guidance_interval": 5}, "`guidance_interval` is 5"),
            ({"guidance_interval": [1, 5]}, r"`guidance_interval` is \[1, 5\], but `guidance_scale` is 1"),
        ],
    )
    def test_what_cannot_be_stored(self, stored, message):
        with pytest.raises(ValueError, match=message):
            checked_sampling(stored, DDPMHubScheduler(), 3)

    def test_guidance_of_a_model_without_classes(self):
        with pytest.raises(ValueError, match="`guidance_scale` is 2, but this model is unconditional"):
            checked_sampling({"guidance_scale": 2}, DDPMHubScheduler(), None)

    def test_nothing_is_nothing(self):
        assert checked_sampling({"eta": None}, DDPMHubScheduler(), 3) is None
