"""What a visitor hears when something goes wrong, and what the log keeps."""

import asyncio

import gradio as gr
import pytest
from answers import answering
from request_checks import InvalidRequestError

REFUSAL = InvalidRequestError("Ask for <less>.", "请减少。")


def heard(error: BaseException, **options) -> str:
    with pytest.raises(gr.Error) as caught, answering("paint", **options):
        raise error
    assert not caught.value.print_exception
    return caught.value.message


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level("INFO")


def test_a_request_that_is_served_is_one_line(caplog):
    with answering("paint") as settings:
        settings |= {"steps": 5, "model": "digits"}
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("paint done steps=5 model='digits' seconds=0.0")


def test_a_refusal_is_said_in_both_languages_and_is_no_html(caplog):
    said = heard(REFUSAL)
    assert "Ask for &lt;less&gt;." in said
    assert "请减少。" in said
    assert heard(REFUSAL, on_page=False) == "Ask for <less>."
    assert [record.getMessage().split(" seconds")[0] for record in caplog.records] == ["paint refused "] * 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("secret /etc/passwd"), "The server failed to do this; its log says why."),
        (MemoryError(), "The server has too little memory for this: ask for less."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            "The server has too little",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "The server has too little memory"),
    ],
)
def test_a_failure_is_one_sentence_and_its_cause_is_in_the_log(caplog, error, message):
    assert heard(error, on_page=False).startswith(message)
    assert type(error).__name__ in caplog.text
    assert "Traceback" in caplog.text
    assert "paint failed" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("stop", [GeneratorExit, asyncio.CancelledError])
def test_a_visitor_who_leaves_is_no_failure(caplog, stop):
    with pytest.raises(stop), answering("paint"):
        raise stop
    assert [record.getMessage().split(" seconds")[0] for record in caplog.records] == ["paint stopped "]


def test_quiet_work_is_logged_only_if_it_fails(caplog):
    with answering("slide", quiet=True):
        pass
    heard(REFUSAL, quiet=True)
    assert caplog.records == []
    heard(RuntimeError("broken"), quiet=True)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
