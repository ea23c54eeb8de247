"""The network as a call uses it: embeddings computed before, guidance, compilation, memory."""

import platform
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, make_pipeline, make_unet, run_python

from ddpm_hub import DDPMHubPipeline, DDPMHubScheduler
from ddpm_hub.ddpm_network_calls import NetworkCalls, with_embeddings_of

TIMES = [999, 500, 3]


def x_t(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_weights_are_moved_to_where_torch_allocates_them():
    """A file mapped into memory has them anywhere, where MKL on some processors gives a product other last bits."""
    unet = make_unet()
    before = {name: weight.clone() for name, weight in unet.named_parameters()}
    for weight in unet.parameters():
        weight.data = torch.cat([torch.zeros(1), weight.data.flatten()])[1:].view_as(weight)
    weights = dict(unet.named_parameters())
    assert all(weight.data_ptr() % 64 == 4 for weight in weights.values())
    DDPMHubPipeline(unet, DDPMHubScheduler(timestep_spacing="trailing"), id2label={0: "a", 1: "b", 2: "c"})
    assert all(weight.data_ptr() % 64 == 0 for weight in weights.values())
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    assert all(weights[name] is weight for name, weight in unet.named_parameters()), "an optimizer would lose them"


class TestEmbeddings:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_they_are_those_of_the_network(self, dtype):
        unet, labels = make_unet().to(dtype), torch.tensor([0, 2])
        other = with_embeddings_of(unet, TIMES, unet.dtype)
        assert other is not unet
        for timestep in TIMES:
            with torch.no_grad():
                outputs = [net(x_t().to(dtype), timestep, class_labels=labels).sample for net in (unet, other)]
            # Three rows instead of one in two small matrix products: their rounding, through a network of two levels.
            tolerance = 1e-5 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=tolerance)

    def test_they_are_computed_once_for_the_whole_schedule(self):
        pipeline, calls = make_pipeline(), []
        pipeline.unet.time_embedding.register_forward_pre_hook(lambda *_: calls.append(1))
        pipeline(batch_size=2, num_inference_steps=10)
        assert calls == [1]

    def test_the_network_itself_stays_as_it_is(self):
        unet = make_unet()
        before = dict(unet._modules)
        other = with_embeddings_of(unet, TIMES, unet.dtype)
        assert unet._modules == before
        assert other.conv_in is unet.conv_in

    def test_another_time_than_those_is_not_a_number(self):
        """Never another time's embedding."""
        other = with_embeddings_of(make_unet(num_class_embeds=None), TIMES, torch.float32)
        with torch.no_grad():
            assert other(x_t(), 501).sample.isnan().all()

    def test_changed_weights_count_at_the_next_call(self):
        pipeline = make_pipeline()
        options = {"num_inference_steps": 3, "seed": 1, "output_type": "sample"}
        before = pipeline(**options).images
        with torch.no_grad():
            pipeline.unet.time_embedding.linear_2.bias.add_(1.0)
        assert not torch.equal(pipeline(**options).images, before)

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of torch's compiler
    @pytest.mark.parametrize("wrap", ["forward", "compile", "fourier"])
    def test_a_network_that_something_was_done_to_is_used_as_it_is(self, wrap):
        unet = make_unet()
        if wrap == "forward":
            unet.forward = unet.forward  # as offloading puts itself in front
        elif wrap == "compile":
            unet.compile()
        else:
            unet = type(unet)(
                **{k: v for k, v in unet.config.items() if k[0] != "_"} | {"time_embedding_type": "fourier"}
            )
        assert with_embeddings_of(unet, TIMES, unet.dtype) is unet

    def test_offloaded_networks_draw_the_same(self):
        """accelerate's hooks replace `forward`, and move the inputs."""
        from accelerate import cpu_offload

        options = {"num_inference_steps": 3, "seed": 1, "class_labels": [0, 1], "output_type": "sample"}
        plain = make_pipeline()(**options).images
        pipeline = make_pipeline()
        cpu_offload(pipeline.unet, execution_device=torch.device("cpu"))
        torch.testing.assert_close(pipeline(**options).images, plain, rtol=0, atol=1e-5)


class TestGuidanceInterval:
    def test_outside_of_it_the_network_is_asked_once_for_each_image(self):
        pipeline, asked = make_pipeline(), []
        pipeline.unet.register_forward_pre_hook(lambda _, a: asked.append((len(a[0]), int(a[1]))))
        pipeline(class_labels=[0, 1], num_inference_steps=5, guidance_scale=3, guidance_interval=(300, 599))
        assert asked == [(2, 999), (2, 799), (4, 599), (4, 399), (2, 199)]

    def test_all_of_it_is_plain_guidance_and_none_of_it_is_none(self):
        pipeline = make_pipeline()
        options = {"class_labels": [0, 1], "num_inference_steps": 5, "seed": 1, "output_type": "sample"}
        guided = pipeline(guidance_scale=3, **options).images
        assert torch.equal(pipeline(guidance_scale=3, guidance_interval=(0, 999), **options).images, guided)
        assert torch.equal(
            pipeline(guidance_scale=3, guidance_interval=(0, 100), **options).images, pipeline(**options).images
        )

    def test_without_guidance_there_is_no_interval(self):
        with pytest.raises(ValueError, match=r"`guidance_interval` is .*, but `guidance_scale` is 1"):
            make_pipeline()(class_labels=[0], guidance_interval=(0, 100))

    @pytest.mark.parametrize(
        ("interval", "message"),
        [
            ((0, 1000), "`guidance_interval` is 1000; it must be a whole number, from 0 to 999"),
            ((5,), r"`guidance_interval` is \(5,\); it must be the smallest and the largest"),
            ((600, 300), r"`guidance_interval` is \(600, 300\); the smaller timestep comes first"),
            (300, "`guidance_interval` is 300"),
        ],
    )
    def test_what_is_no_interval(self, interval, message):
        with pytest.raises(ValueError, match=message):
            make_pipeline()(class_labels=[0], guidance_scale=2, guidance_interval=interval)


COMPILED = """
import sys, threading, warnings
warnings.simplefilter("error")
warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
import torch
sys.path.insert(0, "tests")
from conftest import make_pipeline
pipeline = make_pipeline()
options = {"class_labels": [0, 1], "num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "sample"}
plain = {seed: pipeline(seed=seed, **options).images for seed in range(4)}
fast = {}
def draw(seed):
    fast[seed] = pipeline(seed=seed, fast=True, **options).images
threads = [threading.Thread(target=draw, args=(seed,)) for seed in plain]
for thread in threads: thread.start()
for thread in threads: thread.join()
from torch._dynamo.utils import counters
assert counters["stats"]["unique_graphs"] == 1, counters["stats"]
for seed in plain:
    # Fused kernels add in another order: float32 rounding, through five steps that pass it on.
    torch.testing.assert_close(fast[seed], plain[seed], rtol=0, atol=1e-4)
again = fast[0]
draw(0)
assert torch.equal(fast[0], again)
with torch.no_grad():
    pipeline.unet.conv_out.bias.add_(0.5)
draw(0)
torch.testing.assert_close(fast[0], pipeline(seed=0, **options).images, rtol=0, atol=1e-4)
assert (fast[0] - again).abs().max() > 0.01
pipeline.save_pretrained(sys.argv[1])
print("done")
"""

UNCOMPILED = """
import sys, warnings
import torch
sys.path.insert(0, "tests")
from conftest import make_pipeline
pipeline = make_pipeline()
options = {"num_inference_steps": 3, "seed": 1, "output_type": "sample"}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    first, second = (pipeline(fast=True, **options).images for _ in range(2))
said = [str(w.message) for w in said if str(w.message).startswith("`fast`")]
assert len(said) == 1, said
assert "torch.compile fails here" in said[0] and "with the same result" in said[0], said
assert torch.equal(first, second)
torch.testing.assert_close(first, pipeline(**options).images, rtol=0, atol=1e-5)
print("done")
"""


class TestFast:
    def test_it_is_the_same_up_to_rounding_in_every_thread_and_reads_the_weights_that_are_there(self, tmp_path):
        result = run_python("-c", COMPILED, str(tmp_path / "saved"))
        assert result.stdout == "done\n", result.stderr

    def test_where_nothing_can_be_compiled_a_warning_says_so_once(self):
        result = run_python("-c", UNCOMPILED, CXX="/no/such/compiler", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
        assert result.stdout == "done\n", result.stderr

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of torch's compiler
    def test_every_shape_is_compiled_however_many_there_are(self):
        """torch counts the shapes of all networks of a class together, and by itself stops at eight."""
        compiled, pipeline = [], make_pipeline()
        network = pipeline._compiled_network()
        network._compiled = torch.compile(
            pipeline.unet, dynamic=False, backend=lambda graph, inputs: compiled.append(1) or graph.forward
        )
        for batch in range(1, 13):
            pipeline(batch, num_inference_steps=1, fast=True)
        assert len(compiled) == 12
        torch._dynamo.reset()

    def test_a_float64_network_works(self):
        pipeline = make_pipeline().to(torch.float64)
        assert pipeline(2, num_inference_steps=2, seed=0, output_type="sample").images.dtype == torch.float32

    def test_it_is_yes_or_no(self):
        with pytest.raises(ValueError, match="`fast` is 'yes'; it must be one of True, False"):
            make_pipeline()(fast="yes")


OUT_OF_MEMORY = """
import resource, sys
import torch
sys.path.insert(0, "tests")
from conftest import make_pipeline
torch.set_num_threads(1)
pipeline = make_pipeline(size=64)
pipeline(num_inference_steps=1, class_labels=[0], guidance_scale=2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2)
try:
    pipeline(4096, class_labels=0, num_inference_steps=1, guidance_scale=2, output_type="sample")
except torch.OutOfMemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_out_of_memory_says_which_batch_fits():
    result = run_python("-c", OUT_OF_MEMORY)
    assert result.returncode == 0, result.stderr
    said = result.stdout.strip()
    assert said.startswith("A batch of 4096 images of 64×64 does not fit into the memory of cpu; a batch of "), said
    fits = int(said.partition("a batch of ")[2].split()[0])
    # What the guidance needs at least: the features of both halves, in and out, at full resolution, in eight channels.
    assert 1 < fits < 2**30 / (2 * 2 * 8 * 64 * 64 * 4)


def test_other_failures_are_passed_on():
    unet = make_unet()
    calls = NetworkCalls(unet, TIMES, torch.tensor([0, 1]), 2)
    with pytest.raises(RuntimeError, match="expected input"):
        calls(torch.randn(2, 3, 8, 8), 999)


FREED = """
import resource, sys, torch
from ddpm_hub.ddpm_network_calls import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def touch():
    return [torch.ones(count << 20) for count in (5, 20, 40)]
for _ in range(20):  # until the heap has a place for each
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is told to glibc")
def test_freed_memory_is_used_again_without_the_system():
    """Pages that a process touches for the first time since it was given them are counted by the system."""
    faults = {
        choice: int(subprocess.run([sys.executable, "-c", FREED, choice], check=True, capture_output=True, text=True,
                                   cwd=REPOSITORY).stdout)
        for choice in ("keep", "give back")
    }  # fmt: skip
    # Each round touches 260 MiB; a page has at most 2 MiB, and huge ones have to be asked for.
    assert faults["give back"] > 5 * 130
    assert faults["keep"] < 130
