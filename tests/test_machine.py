"""The machine is described by its kind, and by nothing that tells whose it is."""

import getpass
import json
import platform

import pytest
import torch
from machine import cpu_name, describe_machine


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
