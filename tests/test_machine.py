"""The machine is described by its kind, and by nothing that tells whose it is."""

import getpass
import json
import platform
import time
from collections import Counter

import machine
import pytest
import torch
from machine import cpu_name, describe_machine, idle_processors, is_of_amd, measured_peak, resolve_precision
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize(
    ("content", "name"),
    [("processor\t: 0\nmodel name\t: Some CPU @ 2.6GHz\nmodel name\t: Other\n", "Some CPU @ 2.6GHz"),
     ("processor\t: 0\nmodel name\t:\n", platform.processor() or platform.machine()),
     (None, platform.processor() or platform.machine())],
)  # fmt: skip
def test_the_name_of_the_processor(tmp_path, content, name):
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    assert cpu_name(tmp_path / "cpuinfo") == name


def test_threads_of_all_processes():
    facts = describe_machine(torch.device("cpu"), processes=3)
    assert facts.keys() <= {"name", "threads", "torch"}
    assert facts["threads"] == 3 * torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    text = json.dumps(facts)
    assert platform.node() not in text
    assert getpass.getuser() not in text


def test_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    facts = describe_machine(torch.device("cuda"), processes=2)
    assert facts == {"name": "Some GPU", "devices": 2, "torch": torch.__version__}


@pytest.mark.parametrize(
    ("processors", "processes", "threads", "used", "each"),
    [(8, "1", 1, 1, 8), (8, "2", 1, 2, 4), (9, "2", 2, 4, 4), (2, None, 1, 1, 2)],
)
def test_idle_processors_are_told(monkeypatch, processors, processes, threads, used, each):
    work_on(monkeypatch, processors, processes, threads)
    count = each * int(processes or 1)
    assert idle_processors(torch.device("cpu")) == (
        f"Computes with {used} of {processors} processors; OMP_NUM_THREADS={each} before the command uses {count}."
    )


@pytest.mark.parametrize(
    ("device", "processors", "processes", "threads"),
    [("cpu", 1, None, 1), ("cpu", 8, "1", 8), ("cpu", 8, "8", 1), ("cpu", 9, "8", 1), ("cpu", 2, "4", 1), ("cuda", 8, "1", 1)],
)  # fmt: skip
def test_nothing_is_told_where_none_is_idle(monkeypatch, device, processors, processes, threads):
    work_on(monkeypatch, processors, processes, threads)
    assert idle_processors(torch.device(device)) is None


def work_on(monkeypatch, processors: int, processes: str | None, threads: int) -> None:
    monkeypatch.setattr(machine, "available_threads", lambda: processors)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    if processes is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)


@pytest.mark.parametrize("asked", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_a_precision_that_is_named_stays(asked, device):
    assert resolve_precision(asked, torch.device(device)) == asked


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "is_amd", "precision"),
    [(True, True, False, "bf16"), (False, True, False, "no"), (False, True, True, "bf16"), (False, False, True, "no")],
)
def test_a_cpu_trains_in_bf16_where_that_is_faster(monkeypatch, amx, avx512_bf16, is_amd, precision):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(machine, "is_of_amd", lambda: is_amd)
    assert resolve_precision("auto", torch.device("cpu")) == precision


@pytest.mark.parametrize(("vendor", "is_amd"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_who_made_the_processor(tmp_path, vendor, is_amd):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert is_of_amd(tmp_path / "cpuinfo") is is_amd


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "no")])
def test_a_gpu_trains_in_bf16_if_it_does_not_emulate_it(monkeypatch, supported, precision):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported or including_emulation
    )
    assert resolve_precision("auto", torch.device("cuda")) == precision


def test_this_machine_and_others_have_an_answer():
    """PyTorch's own functions are there and take what they are given; `meta` stands for devices that were not tried."""
    assert resolve_precision("auto", torch.device("cpu")) in ("no", "bf16")
    assert resolve_precision("auto", torch.device("meta")) == "no"


class Clock(TorchFunctionMode):
    """A clock that only calls of PyTorch's functions advance, by what they are said to take; and how often they are called."""

    def __init__(self, **seconds: float):
        super().__init__()
        self.seconds, self.count, self.now = seconds, Counter(), 0.0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count[function.__name__] += 1
        self.now += self.seconds.get(function.__name__, 0.0)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("seconds", [{"mm": 1 / 256, "conv2d": 1 / 16}, {"mm": 1 / 16, "conv2d": 1 / 256}])
def test_the_peak_is_the_better_of_the_two_in_flop_per_second(monkeypatch, seconds):
    """With times that are exact in binary, and the operations that PyTorch's own counter counts."""
    clock = Clock(**seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    with clock, FlopCounterMode(display=False) as counter:
        peak = measured_peak(torch.device("cpu"), torch.float32)
    counted = counter.get_flop_counts()["Global"]
    product = counted[torch.ops.aten.mm] / clock.count["mm"] / seconds["mm"]
    convolution = counted[torch.ops.aten.convolution] / clock.count["conv2d"] / seconds["conv2d"]
    assert peak == pytest.approx(max(product, convolution), rel=1e-12)  # rounding of two divisions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_what_a_processor_can_reach(dtype):
    """More than sums of two tensors in memory reach; in float32 less than 64 operations a cycle at 8 GHz in each thread."""
    tensor = torch.ones(4_000_000)
    begun = time.perf_counter()
    tensor + tensor
    sums = tensor.numel() / (time.perf_counter() - begun)
    peak = measured_peak(torch.device("cpu"), dtype)
    if dtype == torch.float32:  # bf16 is slow where the processor does not have it
        assert sums < peak < 64 * 8e9 * torch.get_num_threads()
    assert 0 < peak < float("inf")


def test_the_peak_uses_no_random_number_of_the_process():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    measured_peak(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.rand(3), expected)
