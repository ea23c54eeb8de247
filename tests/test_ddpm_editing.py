"""Editing with a tiny real U-Net: what stays, what the ends are, what is refused."""

import numpy as np
import pytest
import torch
from conftest import make_pipeline, seeds
from PIL import Image

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_trajectories import repaint_moves

# The network adds and multiplies in another order for another batch size; each of at most 10 steps passes on what came
# before. In [−1, 1].
ROUNDING = 2e-5
OPTIONS = {"num_inference_steps": 10, "output_type": "sample"}


def image(seed: int = 0, count: int = 1) -> torch.Tensor:
    """Images in [0, 1] whose values are those of 8 bits."""
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def as_sample(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


class TestImg2img:
    def test_strength_0_is_the_image_and_calls_no_network(self):
        pipeline, calls = make_pipeline(), []
        pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
        original = image(count=2)
        (result,) = pipeline.img2img(original, 0.0, output_type="sample", return_dict=False)
        # float32 rounding of 2p/255 − 1, done in another order here.
        torch.testing.assert_close(result, as_sample(original), rtol=0, atol=2**-23)
        picture = Image.fromarray(original[0, 0].numpy())
        assert pipeline.img2img(picture, 0.0).images[0].tobytes() == picture.tobytes()
        assert calls == []

    @pytest.mark.parametrize(("strength", "steps"), [(0.01, 1), (0.3, 3), (0.55, 5), (1.0, 10)])
    def test_the_strength_is_the_share_of_t(self, strength, steps):
        states = list(make_pipeline().stream_img2img(image(), strength, num_inference_steps=10))
        assert [state.step for state in states] == list(range(steps))
        assert [state.timestep for state in states] == [100 * k - 1 for k in range(steps, 0, -1)]
        assert {state.num_steps for state in states} == {steps}

    @pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"])
    def test_it_starts_from_the_noisy_image(self, sampler):
        """By hand: q(x_t | x_0) with the noise of the seed, then the steps that are left."""
        pipeline = make_pipeline()
        options = {"class_labels": 1, "sampler": sampler, **OPTIONS}
        result = pipeline.img2img(image(), 0.5, seed=4, **options).images
        states = pipeline.stream_img2img(image(), 0.5, seed=4, class_labels=1, sampler=sampler, num_inference_steps=10)
        *_, last = states
        assert torch.equal(last.sample, result)
        if sampler == "ddpm":
            scheduler, (generator,) = pipeline.scheduler, seeds(4)
            scheduler.set_timesteps(10)
            noise = torch.randn(1, 1, 8, 8, generator=generator)
            x_t = scheduler.add_noise(as_sample(image()), noise, 499)
            for t in scheduler.timesteps.tolist()[5:]:
                with torch.no_grad():
                    output = pipeline.unet(x_t, t, class_labels=torch.tensor([1])).sample
                x_t = scheduler.step(output, t, x_t, generator).prev_sample
            torch.testing.assert_close(result, x_t, rtol=0, atol=ROUNDING)

    def test_the_strength_is_the_same_noise_for_every_sampler(self):
        """Their steps are spaced in ways of their own; each starts at its first one that is not noisier."""
        for sampler in ("ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"):
            states = make_pipeline().stream_img2img(image(), 0.5, num_inference_steps=20, sampler=sampler)
            assert 440 < next(states).timestep <= 499

    def test_an_image_that_wants_gradients_is_taken_as_it_is(self):
        wants = (image() / 255.0).requires_grad_()
        assert make_pipeline().img2img(wants, 0.0, output_type="np").images.shape == (1, 8, 8, 1)

    def test_several_pictures_of_one_image(self):
        pipeline = make_pipeline()
        three = pipeline.img2img(image(), 0.5, batch_size=3, seed=7, **OPTIONS).images
        alone = pipeline.img2img(image(), 0.5, seed=8, **OPTIONS).images
        torch.testing.assert_close(three[1:2], alone, rtol=0, atol=ROUNDING)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"strength": 1.1}, "`strength` is 1.1; it must be a number from 0 to 1"),
            ({"strength": -0.1}, "`strength` is -0.1"),
            ({"strength": float("nan")}, "`strength` is nan"),
            ({"strength": "0.5"}, "`strength` is '0.5'"),
            ({"image": torch.zeros(1, 1, 4, 4)}, "`image` is 4 wide and 4 high; the model's images are 8×8"),
            ({"image": image() * 2.0 - 1}, r"`image` has values from"),
            ({"image": Image.new("RGB", (8, 8))}, "`image` has the mode 'RGB'"),
            ({"batch_size": 3, "image": image(count=2)}, "`batch_size` is 3, but `image` holds 2"),
            ({"batch_size": 0}, "`batch_size` is 0"),
            ({"batch_size": True}, "`batch_size` is True"),
            ({"image": np.zeros((8, 8, 1), np.longdouble) - 1}, "`image` has values from -1 to -1"),
            ({"image": torch.full((1, 1, 8, 8), 2.0).to(torch.float8_e4m3fn)}, "`image` has values from 2 to 2"),
            ({"class_labels": [0, 1]}, "`class_labels` has 2 entries"),
            ({"class_labels": 7}, "`class_labels` contains 7"),
            ({"seed": [1, 2]}, "`seed` has 2 entries for 1 images"),
            ({"guidance_scale": 2}, "`guidance_scale` is 2, but `class_labels` is missing"),
            ({"sampler": "euler"}, "`sampler` is 'euler'"),
            ({"output_type": "jpg"}, "`output_type` is 'jpg'"),
        ],
    )
    def test_what_cannot_work_is_refused_before_the_network_is_called(self, arguments, message):
        pipeline, calls = make_pipeline(), []
        pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(ValueError, match=message):
            pipeline.img2img(**{"image": image(), "num_inference_steps": 10} | arguments)
        assert calls == []

    def test_an_unknown_option_is_refused(self):
        with pytest.raises(TypeError, match="steps"):
            make_pipeline().img2img(image(), steps=3)


class TestInpaint:
    MASK = torch.zeros(8, 8, dtype=torch.bool)
    MASK[2:6, 3:7] = True

    @pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
    def test_known_pixels_stay_as_they_are_and_others_do_not(self, sampler):
        pipeline, original = make_pipeline(), image(count=2)
        options = {"class_labels": [0, 1], "num_inference_steps": 30, "seed": 1, "sampler": sampler}
        painted = pipeline.inpaint(original, self.MASK, resamplings=2, **options, output_type="pil").images
        for i, picture in enumerate(painted):
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(8, 8)
            assert torch.equal(pixels[~self.MASK], original[i, 0][~self.MASK])
            assert not torch.equal(pixels[self.MASK], original[i, 0][self.MASK])

    def test_the_known_part_of_every_state_is_the_image_with_its_share_of_noise(self):
        """With half of the pixels known, at every level: mean √ᾱ_s x_0 and variance 1 − ᾱ_s, over 4,000 images."""
        pipeline = make_pipeline()
        flat = torch.full((4000, 1, 8, 8), 0.9)
        mask = torch.ones(8, 8, dtype=torch.bool)
        mask[0, 0] = False
        states = list(pipeline.stream_inpaint(flat, mask, seed=0, num_inference_steps=5, resamplings=1))
        levels = [799, 599, 399, 199]
        for state, level in zip(states, levels, strict=False):
            abar = pipeline.scheduler.alphas_cumprod[level].item()
            known = state.sample[:, 0, 0, 0]
            # 0.9 in [0, 1] is 0.8. Five standard errors: √((1−ᾱ)/n) of the mean, √(2/n) of the variance.
            assert abs(known.mean().item() - 0.8 * abar**0.5) < 5 * ((1 - abar) / 4000) ** 0.5
            assert abs(known.var().item() / (1 - abar) - 1) < 5 * (2 / 4000) ** 0.5
            assert torch.equal(state.pred_original_sample[:, 0, 0, 0], torch.full((4000,), 0.9) * 2 - 1)

    def test_resampling_goes_back_by_the_exact_merge(self):
        """A network that leaves x_t's distribution alone, ε = √(1−ᾱ) x_t: for data N(0, I) all levels are N(0, I)."""

        class Standard(type(make_pipeline().unet)):
            def forward(self, sample, timestep, class_labels=None, return_dict=True):
                return ((1 - DDPMHubScheduler().alphas_cumprod[timestep]).sqrt().float() * sample,)

        tiny = make_pipeline(num_class_embeds=None, size=64)
        config = {k: v for k, v in tiny.unet.config.items() if not k.startswith("_")}
        scheduler = DDPMHubScheduler(timestep_spacing="trailing", variance_type="fixed_large", clip_sample=False)
        pipeline = DDPMHubPipeline(Standard(**config), scheduler)
        pipeline.set_progress_bar_config(disable=True)
        everywhere = torch.ones(64, 64, dtype=torch.bool)
        grey = torch.full((1, 1, 64, 64), 128, dtype=torch.uint8)
        states = list(
            pipeline.stream_inpaint(grey, everywhere, seed=0, num_inference_steps=9, resamplings=3, jump_length=2)
        )
        assert len(states) == 9 + 2 * 2 * 4
        for state in states[:-1]:
            # 4,096 values: five standard errors of the variance are 5·√(2/4096) = 0.11.
            assert abs(state.sample.var().item() - 1) < 0.11

    def test_a_mask_for_each_image_and_nothing_to_paint(self):
        pipeline, original = make_pipeline(), image(count=2)
        masks = torch.stack([self.MASK, torch.zeros_like(self.MASK)])
        painted = pipeline.inpaint(original, masks, seed=1, resamplings=1, **OPTIONS).images
        assert not torch.equal(painted[0], as_sample(original)[0])
        torch.testing.assert_close(painted[1], as_sample(original)[1], rtol=0, atol=2**-23)

    def test_an_image_does_not_depend_on_the_batch_around_it(self):
        pipeline = make_pipeline()
        both = pipeline.inpaint(image(count=2), self.MASK, seed=[5, 6], resamplings=2, **OPTIONS).images
        alone = pipeline.inpaint(image(count=2)[1:], self.MASK, seed=6, resamplings=2, **OPTIONS).images
        torch.testing.assert_close(both[1:], alone, rtol=0, atol=ROUNDING)

    @pytest.mark.parametrize(("value", "white"), [(0.75, True), (0.25, False)])
    def test_a_mask_of_16_bits_or_of_fractions_is_not_cut_to_8_bits(self, value, white):
        pipeline, original = make_pipeline(), image()
        fractions = np.full((8, 8), value, np.float32)
        for mask in (Image.fromarray(fractions), Image.fromarray((fractions * 65535).astype(np.uint16))):
            painted = pipeline.inpaint(original, mask, seed=1, resamplings=1, **OPTIONS).images
            assert ((painted - as_sample(original)).abs().max() > 2**-22) == white

    def test_the_walk(self):
        assert repaint_moves(3, 1, 10) == [(0, 1), (1, 2), (2, 3)]
        assert repaint_moves(5, 2, 2) == [
            (0, 1), (1, 2), (2, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 2), (2, 3), (3, 4), (4, 5),
        ]  # fmt: skip
        assert repaint_moves(3, 2, 10) == repaint_moves(3, 2, 2)  # what is too long for the walk is cut
        for n, r, j in ((100, 5, 10), (17, 3, 4), (1, 9, 1)):
            moves = repaint_moves(n, r, j)
            assert all(before == moves[i][1] for i, (before, _) in enumerate(moves[1:]))
            assert (moves[0][0], moves[-1][1]) == (0, n)
            assert sum(after < before for before, after in moves) == (r - 1) * ((n - 1) // j)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mask": torch.ones(4, 4)}, "`mask` is 4 wide and 4 high; the model's images are 8×8"),
            ({"mask": torch.ones(3, 8, 8)}, r"`mask` has shape \(3, 8, 8\)"),
            ({"mask": np.zeros((0, 0))}, "`mask` is 0 wide and 0 high"),
            ({"mask": Image.new("L", (0, 8))}, "`mask` is 0 wide and 8 high"),
            ({"resamplings": 0}, "`resamplings` is 0; it must be a whole number, from 1 to 1000"),
            ({"resamplings": 10**12}, "`resamplings` is 1[0]+; it must be a whole number, from 1 to 1000"),
            ({"jump_length": 1.5}, "`jump_length` is 1.5"),
            ({"sampler": "dpm++"}, "`sampler` is 'dpm[+][+]'; it must be one of 'ddpm', 'ddim'"),
        ],
    )
    def test_what_cannot_work(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_pipeline().inpaint(**{"image": image(), "mask": self.MASK} | arguments)


class TestInterpolate:
    @pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
    def test_between_seeds_the_ends_are_what_each_seed_gives(self, sampler):
        pipeline = make_pipeline()
        options = {"class_labels": 2, "sampler": sampler, **OPTIONS}
        row = pipeline.interpolate(3, 8, 4, **options).images
        assert row.shape == (4, 1, 8, 8)
        for end, seed in ((row[:1], 3), (row[-1:], 8)):
            torch.testing.assert_close(end, pipeline(seed=seed, **options).images, rtol=0, atol=ROUNDING)
        assert (row[1] - row[0]).abs().max() > 100 * ROUNDING

    def test_between_images_the_ends_are_what_img2img_makes_of_each(self):
        pipeline = make_pipeline()
        row = pipeline.interpolate(image(1), image(2), 3, timestep=499, seed=5, **OPTIONS).images
        for end, one in ((row[:1], image(1)), (row[-1:], image(2))):
            alone = pipeline.img2img(one, 0.5, seed=5, **OPTIONS).images
            torch.testing.assert_close(end, alone, rtol=0, atol=ROUNDING)

    def test_between_images_x_t_is_mixed_linearly(self):
        """Of the first state's mean: with η = 0 and one step, x̂_0 is a function of x_t that is linear for a linear network."""
        pipeline = make_pipeline()
        pipeline.unet.forward = lambda sample, *_, **__: (0.1 * sample,)
        pipeline.scheduler = DDPMHubScheduler(timestep_spacing="trailing", clip_sample=False)
        row = pipeline.interpolate(
            image(1), image(2), 5, timestep=199, seed=5, sampler="ddim", num_inference_steps=10, output_type="sample"
        ).images
        weights = torch.linspace(0, 1, 5).reshape(-1, 1, 1, 1)
        # Two steps of three float32 roundings on numbers of about 1.
        torch.testing.assert_close(row, torch.lerp(row[:1], row[-1:], weights), rtol=0, atol=4e-6)

    def test_numbers_of_few_bits(self):
        pipeline, ends = make_pipeline(), (image(1), image(2))
        wanted = pipeline.interpolate(*ends, 3, 100, seed=5, **OPTIONS).images
        given = pipeline.interpolate(*ends, np.uint8(3), np.uint8(100), seed=np.int8(5), **OPTIONS).images
        assert torch.equal(given, wanted)

    def test_the_nearest_step_is_taken(self):
        states = list(make_pipeline().stream_interpolate(image(1), image(2), 2, 520, num_inference_steps=10))
        assert states[0].timestep == 499

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"count": 1}, "`count` is 1; it must be a whole number, from 2 to 65536"),
            ({"timestep": 5}, "`timestep` is 5, but `first` is a seed"),
            ({"seed": 5}, "`seed` is 5, but `first` is a seed"),
            ({"second": -1}, "`second` is -1"),
            ({"first": image(1)}, "`second` is a int; it must be a PIL image"),
            ({"first": image(1), "second": image(2)}, "`timestep` is missing"),
            ({"first": image(1), "second": image(2), "timestep": 1000}, "`timestep` is 1000; .* from 0 to 999"),
            ({"first": image(1, 2), "second": image(2), "timestep": 1}, "`first` holds 2 images"),
            ({"generator": torch.Generator()}, "`generator` was given"),
        ],
    )
    def test_what_cannot_work(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_pipeline().interpolate(**{"first": 1, "second": 2} | arguments)


class TestInvert:
    def test_with_the_exact_noise_the_round_trip_is_exact(self):
        """A network whose ε is the same everywhere: inversion and DDIM undo each other."""
        pipeline = make_pipeline()
        pipeline.scheduler = DDPMHubScheduler(timestep_spacing="trailing", clip_sample=False)
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        pipeline.unet.forward = lambda sample, *_, **__: (noise.expand_as(sample),)
        x_t = pipeline.invert(image(), num_inference_steps=20)
        back = pipeline(sample=x_t, sampler="ddim", num_inference_steps=20, output_type="sample").images
        # x_0's share of x_T is √ᾱ_T = 0.0063: 20 roundings of 2⁻²⁴ · 4 there are divided by it.
        torch.testing.assert_close(back, as_sample(image()), rtol=0, atol=20 * 2**-22 / 0.0063)

    def test_the_error_of_the_round_trip_falls_with_the_steps(self):
        """Of a real network, over the lower half of the levels, where its x̂_0 is not clipped."""
        pipeline = make_pipeline()
        pipeline.scheduler = DDPMHubScheduler(timestep_spacing="trailing", clip_sample=False)
        errors = []
        for steps in (20, 80):
            again = pipeline.reconstruct(image(), 0.5, num_inference_steps=steps, output_type="sample").images
            errors.append((again - as_sample(image())).abs().mean().item())
        assert errors[1] < errors[0] / 2

    def test_reconstruct_is_invert_and_back(self):
        pipeline = make_pipeline()
        options = {"class_labels": 1, "num_inference_steps": 10}
        x_t = pipeline.invert(image(), **options)
        back = pipeline(sample=x_t, sampler="ddim", output_type="sample", **options).images
        assert torch.equal(pipeline.reconstruct(image(), output_type="sample", **options).images, back)
        torch.testing.assert_close(pipeline.invert(image(), 0.0), as_sample(image()), rtol=0, atol=2**-23)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"strength": 2}, "`strength` is 2"),
            ({"sampler": "ddpm"}, "`sampler` is 'ddpm'; it must be one of 'ddim'"),
            ({"eta": 0.5}, "`eta` is 0.5; an inversion has no noise"),
        ],
    )
    def test_what_cannot_work(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_pipeline().invert(image(), **arguments)


def test_noise_that_is_stored_for_samples_does_not_keep_one_from_inverting():
    pipeline = make_pipeline()
    options = {"num_inference_steps": 6, "eta": 0.5}
    stored = DDPMHubPipeline(pipeline.unet, pipeline.scheduler, sampling={"sampler": "ddim"} | options)
    stored.set_progress_bar_config(disable=True)
    assert torch.equal(stored.invert(image()), pipeline.invert(image(), num_inference_steps=6))


@pytest.mark.parametrize("call", ["stream", "img2img", "interpolate"])
def test_an_option_that_does_not_exist_is_named(call):
    arguments = {"stream": (1,), "img2img": (image(),), "interpolate": (1, 2)}[call]
    with pytest.raises(TypeError, match="got an unexpected option 'noise'; there are class_labels, sampler, "):
        getattr(make_pipeline(), call)(*arguments, noise=3)


def test_guidance_that_is_stored_for_samples_does_not_guide_an_inversion():
    pipeline = make_pipeline()
    stored = DDPMHubPipeline(pipeline.unet, pipeline.scheduler, sampling={"guidance_scale": 3.0})
    stored.set_progress_bar_config(disable=True)
    options = {"class_labels": 1, "num_inference_steps": 5}
    assert torch.equal(stored.invert(image(), **options), pipeline.invert(image(), **options))
    assert not torch.equal(
        stored.img2img(image(), 1.0, seed=1, output_type="sample", **options).images,
        pipeline.img2img(image(), 1.0, seed=1, output_type="sample", **options).images,
    )
