"""The pipeline with a tiny real U-Net: what it draws, what it refuses, how it is saved and loaded."""

import json
import threading

import numpy as np
import pytest
import torch
from conftest import make_pipeline, make_unet, run_python, seeds
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline
from PIL import Image

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler, DDPMHubState
from ddpm_hub.ddpm_hub_layout import CODE_PATHS
from ddpm_hub.ddpm_network_calls import with_embeddings_of
from ddpm_hub.ddpm_sample_arithmetic import draw_noise

# The network adds and multiplies in another order for another batch size; each of 5 steps passes on what came before.
# 1e-5 is 0.0013 of a pixel's step of 1/127.5 in [−1, 1].
ROUNDING = 1e-5


def drawn(pipeline, **kwargs) -> torch.Tensor:
    kwargs = {"num_inference_steps": 5, "output_type": "pt"} | kwargs
    return pipeline(**kwargs).images


class TestCall:
    def test_the_same_seed_gives_the_same_image(self):
        pipeline = make_pipeline()
        first, second, other = (drawn(pipeline, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_an_image_does_not_depend_on_the_batch_around_it(self):
        pipeline = make_pipeline()
        together = drawn(pipeline, class_labels=[0, 1, 2, 1], generator=seeds(3, 4, 5, 6))
        for i, (label, seed) in enumerate(((0, 3), (1, 4), (2, 5), (1, 6))):
            alone = drawn(pipeline, class_labels=[label], generator=seeds(seed))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=ROUNDING)

    def test_the_class_matters(self):
        pipeline = make_pipeline()
        images = [drawn(pipeline, class_labels=c, generator=torch.Generator().manual_seed(0)) for c in (0, 1, None)]
        assert not torch.equal(images[0], images[1])
        assert not torch.equal(images[0], images[2])

    def test_no_label_means_the_null_class(self):
        pipeline, asked = make_pipeline(), []
        hook = pipeline.unet.register_forward_pre_hook(
            lambda _, a, k: asked.append(k["class_labels"]), with_kwargs=True
        )
        drawn(pipeline, batch_size=2, num_inference_steps=1)
        hook.remove()
        assert [labels.tolist() for labels in asked] == [[3, 3]]

    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
    def test_output_types_agree(self, channels, mode):
        pipeline = make_pipeline(channels=channels)
        images = {kind: drawn(pipeline, batch_size=2, output_type=kind, generator=seeds(1, 2)) for kind in ("pt", "np")}
        pictures = drawn(pipeline, batch_size=2, output_type="pil", generator=seeds(1, 2))
        assert images["pt"].shape == (2, channels, 8, 8)
        assert images["pt"].dtype == torch.float32
        assert 0 <= images["pt"].min() <= images["pt"].max() <= 1
        np.testing.assert_array_equal(images["pt"].permute(0, 2, 3, 1).numpy(), images["np"])
        for picture, values in zip(pictures, images["np"], strict=True):
            assert isinstance(picture, Image.Image)
            assert picture.mode == mode
            # Half a pixel of rounding, and float32's in x/2 + 1/2.
            assert np.abs(np.asarray(picture).reshape(8, 8, channels) - values * 255).max() <= 0.5 + 1e-4

    def test_return_dict_and_defaults(self):
        pipeline = make_pipeline()
        (images,) = pipeline(num_inference_steps=1, return_dict=False)
        assert len(images) == 1
        assert len(drawn(pipeline, class_labels=[0, 1, 2])) == 3
        assert len(drawn(pipeline, class_labels=1, batch_size=2)) == 2

    def test_all_the_trained_steps_are_the_default(self):
        pipeline = make_pipeline()
        assert sum(1 for _ in pipeline.stream()) == 1000

    def test_the_progress_bar_is_that_of_diffusers(self, capsys):
        pipeline = make_pipeline()
        pipeline.set_progress_bar_config(disable=False)
        drawn(pipeline)
        assert "5/5" in capsys.readouterr().err

    def test_sizes_that_are_not_square(self):
        assert drawn(make_pipeline(size=(8, 12)), batch_size=2).shape == (2, 1, 8, 12)

    def test_a_network_in_low_precision_keeps_float32_states(self):
        pipeline = make_pipeline().to(torch.bfloat16)
        states = list(pipeline.stream(num_inference_steps=3, generator=seeds(0)))
        assert {state.sample.dtype for state in states} == {torch.float32}
        assert states[-1].sample.isfinite().all()


class TestStream:
    def test_the_call_drains_it(self):
        pipeline = make_pipeline()
        states = list(pipeline.stream(batch_size=2, num_inference_steps=5, generator=seeds(1, 2)))
        assert all(isinstance(state, DDPMHubState) for state in states)
        assert [state.step for state in states] == [0, 1, 2, 3, 4]
        assert [state.timestep for state in states] == [999, 799, 599, 399, 199]
        assert torch.equal(states[-1].sample, states[-1].pred_original_sample)
        images = drawn(pipeline, batch_size=2, generator=seeds(1, 2))
        assert torch.equal(pipeline.decode(states[-1].sample, "pt"), images)

    def test_nothing_is_computed_ahead(self):
        pipeline, calls = make_pipeline(), []
        hook = pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
        states = pipeline.stream(num_inference_steps=5)
        assert calls == []
        next(states)
        states.close()
        hook.remove()
        assert len(calls) == 1

    def test_mistakes_are_told_at_once(self):
        with pytest.raises(ValueError, match="num_inference_steps"):
            make_pipeline().stream(num_inference_steps=0)

    @pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
    @pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
    def test_eta_is_the_schedulers(self, eta, variance_type):
        """Against a loop of the network and the scheduler's step, from the same x_T."""
        pipeline = make_pipeline(num_class_embeds=None)
        pipeline.scheduler = DDPMHubScheduler(timestep_spacing="trailing", variance_type=variance_type)
        scheduler, generator = DDPMHubScheduler.from_config(pipeline.scheduler.config), torch.Generator().manual_seed(1)
        scheduler.set_timesteps(5)
        sample = torch.randn(2, 1, 8, 8, generator=generator)
        # As the pipeline has them: MKL rounds a matrix product of five rows not everywhere as it does one of two.
        network = with_embeddings_of(pipeline.unet, scheduler.timesteps.tolist(), torch.float32)
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                output = network(sample, timestep).sample
                sample = scheduler.step(output, timestep, sample, generator=generator, eta=eta).prev_sample
        *_, last = pipeline.stream(2, None, 5, torch.Generator().manual_seed(1), eta)
        assert torch.equal(last.sample, sample)
        called = pipeline(2, None, 5, torch.Generator().manual_seed(1), "pt", eta=eta).images
        assert torch.equal(called, pipeline.decode(sample, "pt"))

    def test_without_eta_only_the_start_is_drawn(self):
        """DDIM takes no random number after x_T; DDPM, the default, takes as many for each step but the last."""
        pipeline, shape = make_pipeline(), (1, 1, 8, 8)
        for options, draws in (({"eta": 0.0}, 1), ({"eta": 1.0}, 5), ({}, 5)):
            used, expected = (torch.Generator().manual_seed(1) for _ in range(2))
            drawn(pipeline, generator=used, **options)
            for _ in range(draws):
                torch.randn(shape, generator=expected)
            assert torch.equal(used.get_state(), expected.get_state())

    def test_eta_is_one_unless_it_is_given(self):
        pipeline = make_pipeline()
        images = [
            drawn(pipeline, generator=seeds(1), **options) for options in ({}, {"eta": 1.0}, {"eta": 1}, {"eta": 0.0})
        ]
        assert torch.equal(images[0], images[1])
        assert torch.equal(images[0], images[2])
        assert not torch.equal(images[0], images[3])

    def test_gradients_are_not_recorded(self):
        state = next(make_pipeline().stream(num_inference_steps=1))
        assert not state.sample.requires_grad
        assert torch.is_grad_enabled()

    def test_two_threads_get_what_each_would_get_alone(self):
        pipeline, results = make_pipeline(), {}
        alone = {n: drawn(pipeline, num_inference_steps=n, generator=seeds(n)) for n in (7, 40)}
        barrier = threading.Barrier(2)

        def work(n):
            barrier.wait()
            results[n] = [drawn(pipeline, num_inference_steps=n, generator=seeds(n)) for _ in range(5)]

        threads = [threading.Thread(target=work, args=(n,)) for n in alone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for n, images in results.items():
            for image in images:
                assert torch.equal(image, alone[n])
        assert len(results) == 2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; it must be a whole number, from 1 to 1000"),
        ({"num_inference_steps": -3}, "`num_inference_steps` is -3"),
        ({"num_inference_steps": 1001}, "`num_inference_steps` is 1001"),
        ({"class_labels": 3}, "`class_labels` contains 3; the classes are 0 to 2"),
        ({"class_labels": [0, -1]}, "`class_labels` contains -1"),
        ({"class_labels": []}, r"`class_labels` is \[\]"),
        ({"class_labels": [0, 1], "batch_size": 3}, "`class_labels` has 2 entries for `batch_size` = 3"),
        ({"class_labels": 0.5}, "`class_labels` is 0.5"),
        ({"class_labels": [[0], [1]]}, "`class_labels` is"),
        ({"class_labels": torch.zeros(0, dtype=torch.int64)}, "`class_labels` is tensor"),
        ({"class_labels": "1"}, "`class_labels` is '1'; it must be an integer or a flat list"),
        ({"class_labels": [None, 1]}, "`class_labels` is"),
        ({"class_labels": [True, 2]}, "`class_labels` is"),
        ({"batch_size": True}, "`batch_size` is True; it must be a whole number"),
        ({"batch_size": 2.0}, "`batch_size` is 2.0; it must be a whole number"),
        ({"batch_size": "2"}, "`batch_size` is '2'"),
        ({"num_inference_steps": True}, "`num_inference_steps` is True"),
        ({"num_inference_steps": "5"}, "`num_inference_steps` is '5'"),
        ({"generator": 5}, "`generator` is 5; it must be a torch.Generator"),
        ({"generator": [None]}, "`generator` is .*None"),
        ({"generator": (torch.Generator(),)}, "`generator` is .*a list of one per image"),
        ({"output_type": "jpg"}, "`output_type` is 'jpg'; it must be one of 'pil', 'np', 'pt'"),
        ({"eta": 1.5}, r"`eta` is 1.5; it must be a number from 0 \(DDIM\) to 1 \(DDPM\)"),
        ({"eta": -0.1}, "`eta` is -0.1"),
        ({"eta": float("nan")}, "`eta` is nan"),
        ({"eta": "0"}, "`eta` is '0'"),
        ({"generator": seeds(1, 2)}, "`generator` has 2 entries for a batch of 1"),
    ],
)
def test_what_cannot_work_is_refused_before_the_network_is_called(kwargs, message):
    pipeline, calls = make_pipeline(), []
    hook = pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        pipeline(**kwargs)
    hook.remove()
    assert calls == []


def test_an_unconditional_model_refuses_labels():
    pipeline = make_pipeline(num_class_embeds=None)
    assert pipeline.id2label == {}
    with pytest.raises(ValueError, match="`class_labels` was given, but this model is unconditional"):
        pipeline(class_labels=0)
    assert drawn(pipeline, batch_size=2).shape == (2, 1, 8, 8)


def test_pictures_of_five_channels_are_refused():
    with pytest.raises(ValueError, match="5 channels"):
        make_pipeline(channels=5)()


class TestSavingAndLoading:
    @pytest.fixture
    def folder(self, tmp_path):
        make_pipeline().save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    def test_the_layout_is_the_one_that_the_loader_asks_for(self, folder):
        index = json.loads((folder / "model_index.json").read_text())
        assert index["_class_name"] == ["pipeline_ddpm_hub", "DDPMHubPipeline"]
        assert index["scheduler"] == ["scheduling_ddpm_hub", "DDPMHubScheduler"]
        assert index["unet"] == ["diffusers", "UNet2DModel"]
        files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert files == set(CODE_PATHS) | {
            "model_index.json",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
        }

    def test_the_package_loads_it(self, folder):
        loaded = DDPMHubPipeline.from_pretrained(folder)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is DDPMHubPipeline
        assert type(loaded.scheduler) is DDPMHubScheduler
        assert loaded.id2label == {0: "zero", 1: "one", 2: "two"}
        assert torch.equal(drawn(loaded, generator=seeds(1)), drawn(make_pipeline(), generator=seeds(1)))

    def test_it_can_be_loaded_by_trust_saved_and_loaded_again(self, folder, tmp_path):
        """In a process that cannot import the package."""
        script = """
import sys
sys.modules["ddpm_hub"] = None  # `import ddpm_hub` now raises ImportError
import torch
from diffusers import DiffusionPipeline
def draw(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    return pipeline, pipeline(num_inference_steps=5, output_type="pt", generator=torch.Generator().manual_seed(1)).images
first, image = draw(sys.argv[1])
assert type(first).__module__.startswith("diffusers_modules."), type(first)
assert type(first.scheduler).__module__.startswith("diffusers_modules."), type(first.scheduler)
assert first.id2label == {0: "zero", 1: "one", 2: "two"}, first.id2label
first.save_pretrained(sys.argv[2])
second, again = draw(sys.argv[2])
assert torch.equal(image, again)
torch.save(image, sys.argv[3])
"""
        image = tmp_path / "image.pt"
        environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
        result = run_python("-c", script, str(folder), str(tmp_path / "again"), str(image), **environment)
        assert result.returncode == 0, result.stderr
        assert "Expected types" not in result.stderr
        assert torch.equal(torch.load(image), drawn(make_pipeline(), generator=seeds(1)))

    def test_without_trust_diffusers_refuses_the_code(self, folder):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            DiffusionPipeline.from_pretrained(folder)

    def test_a_folder_of_plain_diffusers_loads(self, tmp_path):
        unet = make_unet(num_class_embeds=None)
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
        loaded = DDPMHubPipeline.from_pretrained(tmp_path)
        assert loaded.scheduler.config.timestep_spacing == "leading"
        assert loaded.num_classes is None

    def test_a_folder_without_weights_says_so(self, folder):
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"`pretrained_model_name_or_path`.*no weights"):
            DDPMHubPipeline.from_pretrained(folder)

    def test_a_folder_that_is_no_model_says_so(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
            DDPMHubPipeline.from_pretrained(tmp_path)

    @pytest.mark.parametrize("path", ["/no/such/model", "./model", "~/model", "a/b/c"])
    def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(self, path):
        with pytest.raises(FileNotFoundError, match=r"there is no such folder\. Train a model with `make train`"):
            DDPMHubPipeline.from_pretrained(path)

    def test_a_name_that_nobody_has_says_what_to_do(self, tmp_path):
        script = "from ddpm_hub import DDPMHubPipeline; DDPMHubPipeline.from_pretrained('outputs/nowhere')"
        result = run_python("-c", script, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
        assert result.returncode == 1
        *_, last = result.stderr.strip().splitlines()
        assert last.startswith("OSError: `pretrained_model_name_or_path` is 'outputs/nowhere': no such folder is here")
        assert "`make train`" in last

    def test_a_scheduler_that_samples_otherwise_is_refused(self, folder, tmp_path):
        pipeline = make_pipeline()
        with pytest.raises(ValueError, match="`scheduler` is a DDIMScheduler; it must be a DDPMHubScheduler"):
            DDPMHubPipeline(pipeline.unet, DDIMScheduler())
        pipeline.scheduler = DDIMScheduler()
        with pytest.raises(ValueError, match="`scheduler` is a DDIMScheduler"):
            pipeline(num_inference_steps=1)
        pipeline.save_pretrained(tmp_path / "ddim")
        with pytest.raises(ValueError, match=r"`scheduler` of .* is a DDIMScheduler"):
            DDPMHubPipeline.from_pretrained(tmp_path / "ddim")
        ours = DDPMHubScheduler.from_pretrained(tmp_path / "ddim", subfolder="scheduler")
        assert DDPMHubPipeline.from_pretrained(tmp_path / "ddim", scheduler=ours).scheduler is ours

    def test_unknown_arguments_are_refused(self, folder):
        with pytest.raises(TypeError, match="revison"):
            DDPMHubPipeline.from_pretrained(folder, revison="main")


class TestGuidance:
    def test_one_step_is_the_formula(self):
        """u + w (c − u), from two calls of the network of their own."""
        pipeline = make_pipeline()
        labels = torch.tensor([0, 2])
        x_t = draw_noise(torch.empty(2, 1, 8, 8), seeds(1, 2))
        with torch.no_grad():
            c, u = (pipeline.unet(x_t, 999, class_labels=y).sample for y in (labels, torch.full((2,), 3)))
        wanted = pipeline.scheduler.predict_original_sample(u + 2.5 * (c - u), x_t, 999)
        states = pipeline.stream(class_labels=labels, num_inference_steps=10, generator=seeds(1, 2), guidance_scale=2.5)
        # Batches of 2 and 4 in float32: rounding of some hundred operations, magnified by w and 1/√ᾱ_T ≈ 158.
        torch.testing.assert_close(next(states).pred_original_sample, wanted, rtol=1e-4, atol=2e-3)

    def test_at_one_nothing_changes_and_at_zero_the_class_has_no_say(self):
        pipeline = make_pipeline()

        def draw(labels, **kwargs):
            return pipeline(
                class_labels=labels, num_inference_steps=3, generator=seeds(1), output_type="pt", **kwargs
            ).images

        assert torch.equal(draw([1]), draw([1], guidance_scale=1.0))
        # The same network on one and on two images: float32 rounding in [0, 1], through three steps that magnify it.
        torch.testing.assert_close(draw([1], guidance_scale=0.0), draw(None), rtol=0, atol=1e-3)
        assert (draw([1], guidance_scale=5.0) - draw([1])).abs().max() > 1e-3

    def test_each_step_calls_the_network_once(self):
        pipeline = make_pipeline()
        calls = []
        pipeline.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
        pipeline(class_labels=[0, 1, 2], num_inference_steps=4, guidance_scale=3)
        assert calls == [6] * 4

    @pytest.mark.parametrize("scale", [-1, float("nan"), float("inf"), "2"])
    def test_scales_out_of_range(self, scale):
        with pytest.raises(ValueError, match=r"`guidance_scale` is .*at least 0"):
            make_pipeline().stream(class_labels=[0], guidance_scale=scale)

    def test_without_classes_it_is_refused(self):
        with pytest.raises(ValueError, match="`guidance_scale` is 2, but `class_labels` is missing"):
            make_pipeline().stream(guidance_scale=2)
        with pytest.raises(ValueError, match="`guidance_scale` is 2, but this model is unconditional"):
            make_pipeline(num_class_embeds=None).stream(guidance_scale=2)


class TestOptions:
    def test_one_seed_per_image(self):
        pipeline = make_pipeline()
        wanted = drawn(pipeline, batch_size=3, generator=seeds(4, 5, 6))
        assert torch.equal(drawn(pipeline, batch_size=3, seed=4), wanted)
        assert torch.equal(drawn(pipeline, batch_size=3, seed=[4, 5, 6]), wanted)

    def test_batch_1_and_16_give_the_same_image(self):
        pipeline = make_pipeline()
        together = drawn(pipeline, batch_size=16, seed=0)
        for i in (0, 7, 15):
            torch.testing.assert_close(together[i : i + 1], drawn(pipeline, seed=i), rtol=0, atol=ROUNDING)

    def test_the_spacing_is_that_of_the_call_and_no_other(self):
        pipeline = make_pipeline()
        times = [state.timestep for state in pipeline.stream(1, None, 4, timestep_spacing="linspace")]
        assert times == [999, 666, 333, 0]
        assert [state.timestep for state in pipeline.stream(1, None, 4)] == [999, 749, 499, 249]
        assert pipeline.scheduler.config.timestep_spacing == "trailing"

    def test_dynamic_thresholding_in_place_of_clipping(self):
        """By the formula: x̂_0 over the quantile of its magnitude, where that is above 1."""
        pipeline = make_pipeline()
        x_t = draw_noise(torch.empty(2, 1, 8, 8), seeds(1, 2))
        with torch.no_grad():
            output = pipeline.unet(x_t, 999, class_labels=torch.tensor([3, 3])).sample.double()
        abar = pipeline.scheduler.alphas_cumprod[999]
        estimate = (x_t.double() - (1 - abar).sqrt() * output) / abar.sqrt()
        largest = estimate.flatten(1).abs().quantile(0.9, dim=1).clamp(min=1)[:, None, None, None]
        state = next(pipeline.stream(2, None, 10, seeds(1, 2), dynamic_thresholding_ratio=0.9))
        # float32 rounding of numbers up to 1/√ᾱ_T ≈ 158, over a threshold of about as much.
        torch.testing.assert_close(
            state.pred_original_sample.double(), (estimate / largest).clamp(-1, 1), rtol=0, atol=1e-5
        )
        assert not pipeline.scheduler.config.thresholding

    def test_another_size(self):
        pipeline = make_pipeline()
        assert drawn(pipeline, height=12, width=16).shape == (1, 1, 12, 16)
        with pytest.raises(ValueError, match="`height` is 13; for this network it must be a multiple of 2"):
            drawn(pipeline, height=13)

    def test_a_given_x_t_is_where_it_begins(self):
        pipeline = make_pipeline()
        x_t = draw_noise(torch.empty(2, 1, 8, 8), seeds(1, 2))
        wanted = drawn(pipeline, batch_size=2, generator=seeds(1, 2), sampler="ddim")
        assert torch.equal(drawn(pipeline, sample=x_t, sampler="ddim"), wanted)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"sample": torch.zeros(2, 1, 8, 8), "batch_size": 3},
                r"`sample` is \(2, 1, 8, 8\); .* shape \(3, 1, 8, 8\)",
            ),
            ({"sample": [0.0]}, "`sample` is list"),
            ({"sample": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, "`sample` is"),
            ({"seed": 1, "generator": torch.Generator()}, "`seed` and `generator` were both given"),
            ({"seed": [1], "batch_size": 2}, "`seed` has 1 entries for 2 images"),
            ({"timestep_spacing": "even"}, "`timestep_spacing` is 'even'"),
            ({"timestep_spacing": "trailing", "sampler": "unipc"}, "but `sampler` = 'unipc' has its own"),
            ({"dynamic_thresholding_ratio": 1.5}, "`dynamic_thresholding_ratio` is 1.5"),
            ({"num_inference_steps": np.array([1, 2])}, "`num_inference_steps` is array"),
            ({"batch_size": 10**20}, "`batch_size` is 1[0]+; it must be a whole number, from 1 to 65536"),
            ({"class_labels": [2**70]}, "`class_labels` contains 1180591620717411303424"),
            ({"class_labels": 0, "guidance_scale": 1e300}, "`guidance_scale` is 1e[+]300; .* at most 1e[+]06"),
            ({"sample": torch.full((1, 1, 8, 8), float("nan"))}, "`sample` holds NaN or infinity"),
            ({"sampler": np.array([])}, "`sampler` is array"),
            (
                {"callback_on_step_end_tensor_inputs": 5, "num_inference_steps": 1},
                "`callback_on_step_end_tensor_inputs` is 5; it must be a list of sample, pred_original_sample",
            ),
        ],
    )
    def test_what_cannot_be_asked(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_pipeline()(**options)

    def test_numbers_of_numpy(self):
        pipeline = make_pipeline()
        plain = drawn(pipeline, num_inference_steps=3, seed=1, eta=0.5, class_labels=1, guidance_scale=2.0)
        same = drawn(
            pipeline, num_inference_steps=np.int64(3), seed=np.int64(1), eta=np.float32(0.5), class_labels=np.int64(1),
            guidance_scale=np.float32(2),
        )  # fmt: skip
        assert torch.equal(same, plain)

    def test_a_network_with_other_channels_is_refused_before_it_is_called(self):
        pipeline = make_pipeline()
        pipeline.scheduler = DDPMHubScheduler(variance_type="learned_range")
        for sampler in ("ddpm", "dpm++"):
            with pytest.raises(
                ValueError, match=r"`unet` has in_channels = 1 and out_channels = 1; .* out_channels = 2"
            ):
                pipeline(sampler=sampler)


def test_a_stock_model_is_drawn_as_diffusers_draws_it(tmp_path):
    """A peer's folder, the same generator: only the rounding of diffusers' float32 tables is between the two."""
    stock = DDPMPipeline(make_unet(num_class_embeds=None), DDPMScheduler())
    stock.set_progress_bar_config(disable=True)
    stock.save_pretrained(tmp_path)
    ours = DDPMHubPipeline.from_pretrained(tmp_path)
    ours.set_progress_bar_config(disable=True)
    options = {"batch_size": 2, "num_inference_steps": 20, "output_type": "np"}
    theirs = stock(generator=torch.Generator().manual_seed(0), **options).images
    # Their coefficients err by up to 4e-4, in [0, 1] half of that, through 20 steps of which the last count most.
    np.testing.assert_allclose(ours(generator=torch.Generator().manual_seed(0), **options).images, theirs, atol=2e-3)
    for sampler in ("ddim", "dpm++", "sde-dpm++", "unipc"):
        assert ours(seed=0, sampler=sampler).images[0].size == (8, 8)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.zeros(8, 8), r"`sample` has shape \(8, 8\); it must be a tensor of shape \(B, 1, H, W\)"),
        (torch.zeros(1, 3, 8, 8), r"`sample` has shape \(1, 3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "`sample` has dtype torch.uint8"),
        ([0.0], "`sample` is a list"),
    ],
)
def test_what_is_no_sample_is_not_decoded(sample, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline().decode(sample)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"])
def test_a_callback_that_gives_back_what_it_got_changes_nothing(sampler):
    """As diffusers' callbacks do; UniPC, too, goes on correcting by where it has been."""
    pipeline, options = make_pipeline(), {"seed": 1, "sampler": sampler, "num_inference_steps": 5}
    alone = drawn(pipeline, **options)
    assert torch.equal(drawn(pipeline, **options, callback_on_step_end=lambda *arguments: arguments[-1]), alone)
    in_place = drawn(
        pipeline, **options, callback_on_step_end=lambda *arguments: {"sample": arguments[-1]["sample"].mul_(0.5)}
    )
    in_a_copy = drawn(
        pipeline, **options, callback_on_step_end=lambda *arguments: {"sample": arguments[-1]["sample"] * 0.5}
    )
    assert torch.equal(in_place, in_a_copy)
    assert not torch.equal(in_place, alone)
