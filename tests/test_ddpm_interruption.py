"""`interrupt` and callbacks as in diffusers, with several threads on one pipeline."""

import threading

import pytest
import torch
from conftest import make_pipeline

OPTIONS = {"num_inference_steps": 6, "output_type": "sample", "class_labels": [0, 1]}


def test_the_callback_sees_every_step_and_what_it_asks_for():
    pipeline, seen = make_pipeline(), []

    def callback(caller, step, timestep, tensors):
        assert caller is pipeline
        seen.append((step, timestep, sorted(tensors), tensors["sample"].shape))

    inputs = ["sample", "pred_original_sample"]
    pipeline(**OPTIONS, seed=0, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=inputs)
    shape = torch.Size([2, 1, 8, 8])
    times = [999, 832, 666, 499, 332, 166]
    assert seen == [(i, t, ["pred_original_sample", "sample"], shape) for i, t in enumerate(times)]


def test_the_callback_can_put_another_sample_in_its_place():
    pipeline = make_pipeline()
    kept = []

    def replace(_, step, timestep, tensors):
        kept.append(tensors["sample"])
        return {"sample": torch.zeros_like(tensors["sample"])} if step == 2 else None

    pipeline(**OPTIONS, sampler="ddim", seed=0, callback_on_step_end=replace)
    first = kept[3]
    kept.clear()
    pipeline(**OPTIONS, sampler="ddim", seed=5, callback_on_step_end=replace)
    assert torch.equal(kept[3], first)  # from zero on the seed has no say


def test_it_ends_the_call_that_asks_for_it_and_gives_what_is_there():
    pipeline, states = make_pipeline(), []

    def callback(caller, step, timestep, tensors):
        assert not caller.interrupt
        states.append(tensors["sample"])
        if step == 2:
            caller._interrupt = True
            assert caller.interrupt

    result = pipeline(**OPTIONS, seed=0, callback_on_step_end=callback).images
    assert len(states) == 3
    assert torch.equal(result, states[-1])
    assert not pipeline.interrupt
    assert len(pipeline(**OPTIONS, seed=0).images) == 2  # the next call is not ended


def test_one_thread_ends_its_own_call_and_no_other():
    pipeline = make_pipeline()
    alone = pipeline(**OPTIONS, seed=0).images
    both_run, one_ended, results = threading.Barrier(2, timeout=60), threading.Event(), {}

    def goes_on(_, step, timestep, tensors):
        if step == 0:
            both_run.wait()
            assert one_ended.wait(60)

    def ends(caller, step, timestep, tensors):
        both_run.wait()
        caller._interrupt = True

    def draw(name, callback):
        results[name] = pipeline(**OPTIONS, seed=0, callback_on_step_end=callback).images
        if name == "ends":
            one_ended.set()

    threads = [threading.Thread(target=draw, args=pair) for pair in (("goes on", goes_on), ("ends", ends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results["goes on"], alone)
    assert not torch.equal(results["ends"], alone)


def test_a_thread_that_draws_nothing_ends_all_that_are_under_way():
    pipeline, steps = make_pipeline(), []
    running, told = threading.Event(), threading.Event()

    def callback(_, step, timestep, tensors):
        steps.append(step)
        running.set()
        assert told.wait(60)

    thread = threading.Thread(target=lambda: pipeline(**OPTIONS, callback_on_step_end=callback))
    thread.start()
    assert running.wait(60)
    pipeline._interrupt = True
    assert pipeline.interrupt
    told.set()
    thread.join()
    assert steps == [0]


def test_a_callback_that_fails_leaves_nothing_behind():
    pipeline = make_pipeline()

    def fail(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pipeline(**OPTIONS, callback_on_step_end=fail)
    pipeline._interrupt = True  # nothing runs: nobody is told
    assert len(pipeline(**OPTIONS).images) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"sample": torch.zeros(1, 1, 8, 8)},
            r"`sample`, which a callback .* has shape \(1, 1, 8, 8\).*shape \(2, 1, 8, 8\)",
        ),
        ({"sample": [0]}, "`sample`, which a callback or `send` put in place of another, is none"),
        (torch.zeros(2), "`callback_on_step_end` returned tensor.*; it must be a dictionary, or nothing"),
    ],
)
def test_what_a_callback_cannot_give(answer, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline()(**OPTIONS, callback_on_step_end=lambda *_: answer)


def test_a_callback_must_be_a_function():
    with pytest.raises(ValueError, match="`callback_on_step_end` is 3; it must be a function"):
        make_pipeline()(**OPTIONS, callback_on_step_end=3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"])
def test_what_is_sent_takes_the_place_of_the_sample(sampler):
    """In double precision and on the way it becomes float32; the next state follows from it with every sampler."""
    nexts = []
    for value in (0.0, 0.5):
        states = make_pipeline().stream(1, None, 6, sampler=sampler, seed=0)
        first = next(states)
        nexts.append(states.send(torch.full((1, 1, 8, 8), value, dtype=torch.float64)))
        assert nexts[-1].sample.dtype == torch.float32
        assert first.step == 0
    assert (nexts[1].sample - nexts[0].sample).mean() > 0.1


@pytest.mark.parametrize("sampler", ["dpm++", "sde-dpm++", "unipc"])
def test_what_is_done_to_the_tensors_of_a_state_changes_nothing(sampler):
    plain = make_pipeline()(**OPTIONS, sampler=sampler, seed=0).images

    def spoil(_, step, timestep, tensors):
        tensors["pred_original_sample"].zero_()

    options = OPTIONS | {"callback_on_step_end_tensor_inputs": ["pred_original_sample"], "seed": 0}
    assert torch.equal(make_pipeline()(**options, sampler=sampler, callback_on_step_end=spoil).images, plain)


def test_unknown_tensors_are_refused():
    with pytest.raises(
        ValueError, match="`callback_on_step_end_tensor_inputs` is 'latents'; it must be one of 'sample'"
    ):
        make_pipeline()(**OPTIONS, callback_on_step_end_tensor_inputs=["latents"])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"])
def test_threads_on_one_pipeline_get_what_each_would_get_alone(sampler):
    """Each with settings of its own, step by step in turn: what one leaves in the pipeline the next would find."""
    pipeline = make_pipeline()
    asked = [{"seed": 1, "num_inference_steps": 6}, {"seed": 2, "num_inference_steps": 9, "guidance_scale": 2.0}]
    alone = [pipeline(class_labels=[0, 1], sampler=sampler, output_type="sample", **o).images for o in asked]
    streams = [pipeline.stream(class_labels=[0, 1], sampler=sampler, **o) for o in asked]
    together = {}
    while len(together) < 2:
        for i, states in enumerate(streams):
            if i not in together and (state := next(states)).step == state.num_steps - 1:
                together[i] = state.sample
    assert all(torch.equal(together[i], alone[i]) for i in (0, 1))

    results, start = {}, threading.Barrier(4, timeout=60)

    def draw(i):
        start.wait()
        results[i] = pipeline(class_labels=[0, 1], sampler=sampler, output_type="sample", **asked[i % 2]).images

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[i], alone[i % 2]) for i in range(4))
