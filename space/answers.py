"""What a visitor hears: every request ends in its result or in one sentence, and in one line of the log."""

import asyncio
import html
import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from both_languages import Both
from request_checks import InvalidRequestError
from visitor_files import with_uploads

log = logging.getLogger("ddpm_hub.requests")

# What the components of the page give; callers of its events may send anything.
TYPES = {
    gr.Checkbox: bool,
    gr.Dataset: int,
    gr.Dropdown: str | None,
    gr.HTML: str,
    gr.Number: int | float | None,
    gr.Radio: str,
    gr.Slider: int | float | None,
    gr.Textbox: str,
}

BUSY = "Busy: many visitors are waiting. Try again in a minute. 访问者过多，请稍后再试。"
MEANINGLESS = Both("The request is none that this server knows.", "服务器无法理解该请求。")
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
        outcome, refusal = "failed", NO_MEMORY if is_about_memory(error) else FAILED
        log.exception("%s failed", action)
    finally:
        if not quiet:
            said = " ".join(f"{name}={value!r}" for name, value in settings.items())
            log.info("%s %s %s seconds=%.2f", action, outcome, said, time.monotonic() - begun)
    if refusal:
        raise gr.Error(_on_page(refusal) if on_page else refusal.en, print_exception=False)


class AnsweringBlocks(gr.Blocks):
    """A page of which every event ends so, whatever it is sent: Gradio looks at the values before our functions do."""

    async def process_api(self, block_fn, *args, state=None, session_hash=None, **kwargs) -> dict:
        """Runs an event."""
        on_page = block_fn.api_visibility == "private"
        try:
            with answering(block_fn.api_name, on_page=on_page, quiet=True):
                return await super().process_api(block_fn, *args, state=state, session_hash=session_hash, **kwargs)
        finally:
            # Half a MB for each visitor, for links that this page makes itself.
            if state is not None:
                state.config_values.clear()
            if not on_page:  # each call is a session of its own, to which nobody comes back
                self.state_holder.session_data.pop(session_hash, None)
                self.state_holder.time_last_used.pop(session_hash, None)

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs) -> list:
        """The values of an event, as its function takes them."""
        try:
            if block_fn.fn is None:
                raise TypeError("This event is the browser's own.")
            for component, value in zip(block_fn.inputs, inputs, strict=False):
                _check_type(component, value)
            return await super().preprocess_data(block_fn, with_uploads(inputs), *args, **kwargs)
        except (InvalidRequestError, OSError, MemoryError):
            raise
        except Exception as error:  # Gradio's components raise whatever they stumble on
            log.info("%s refused: %s", block_fn.api_name, place(error))
            raise InvalidRequestError(
                "A value is missing, of the wrong type or outside its range.", "有参数缺失、类型错误或超出范围。"
            ) from error


def _check_type(component: gr.components.Component, value: object) -> None:
    for kind, allowed in TYPES.items():
        if isinstance(component, kind) and not isinstance(value, allowed):
            raise TypeError(f"{kind.__name__} gives no {type(value).__name__}.")
    if isinstance(component, gr.Radio) and value not in [choice for _, choice in component.choices]:
        raise ValueError("That is none of its choices.")


def place(error: Exception) -> str:
    """What was raised where, without its words, which may be the visitor's."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    cause = f" ({error.strerror})" if isinstance(error, OSError) else ""
    return f"{type(error).__name__}{cause} in {frame.name}, {Path(frame.filename).name}:{frame.lineno}"


def _on_page(message: Both) -> str:
    return Both(html.escape(message.en), html.escape(message.zh)).html


def is_about_memory(error: Exception) -> bool:
    """Whether memory ran out; neither torch nor Python's threads have a type of their own for that."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        word in said for word in ("out of memory", "allocate", "start new thread")
    )
