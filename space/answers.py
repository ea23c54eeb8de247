"""What a visitor hears: every request ends in its result or in one sentence, and in one line of the log."""

import asyncio
import html
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from both_languages import Both
from request_checks import InvalidRequestError

log = logging.getLogger("ddpm_hub.requests")

FAILED = Both("The server failed to do this; its log says why.", "服务器未能完成该请求；原因见其日志。")
NO_MEMORY = Both("The server has too little memory for this: ask for less.", "服务器内存不足：请减少请求量。")


@contextmanager
def answering(action: str, on_page: bool = True, quiet: bool = False) -> Iterator[dict]:
    """Around the work for one request: whatever goes wrong becomes a `gr.Error` of one sentence, and the log says what was done.

    Args:
        action (`str`): what was asked for, as the API calls it.
        on_page (`bool`): the sentence is in both languages, of which the page shows one; else in English.
        quiet (`bool`): only failures are logged.

    Yields:
        `dict`: for the settings that the log is to show. They must be checked before: the log holds no image, no address and
            no text of the visitor's.
    """
    begun, outcome, refusal, settings = time.monotonic(), "done", None, {}
    try:
        yield settings
    except InvalidRequestError as error:
        outcome, refusal = "refused", error.message
    except gr.Error:
        outcome = "refused"
        raise
    except (GeneratorExit, asyncio.CancelledError):
        outcome = "stopped"
        raise
    except Exception as error:
        outcome, refusal = "failed", NO_MEMORY if _is_about_memory(error) else FAILED
        log.exception("%s failed", action)
    finally:
        if not quiet:
            said = " ".join(f"{name}={value!r}" for name, value in settings.items())
            log.info("%s %s %s seconds=%.2f", action, outcome, said, time.monotonic() - begun)
    if refusal:
        raise gr.Error(_on_page(refusal) if on_page else refusal.en, print_exception=False)


def _on_page(message: Both) -> str:
    return Both(html.escape(message.en), html.escape(message.zh)).html


def _is_about_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has no type of its own for that of the CPU."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "allocate" in str(error)
