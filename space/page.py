"""What the tabs of the page share: words in two languages, the controls above the tabs, and answers to visitors."""

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from both_languages import Both

LANGUAGES = [("English", "en"), ("中文", "zh")]


class Words:
    """Makes components whose words are in two languages, and says what to send when the language changes."""

    def __init__(self) -> None:
        self._made: list[tuple[gr.blocks.Block, dict[str, Both]]] = []

    def __call__(self, make: Callable, *args, **properties) -> Any:
        """`make(*args, **properties)`, where properties that are [`Both`] follow the language of the page."""
        both = {name: value for name, value in properties.items() if isinstance(value, Both)}
        component = make(*args, **properties | {name: value.en for name, value in both.items()})
        self._made.append((component, both))
        return component

    @property
    def components(self) -> list[gr.blocks.Block]:
        """What [`in_language`] has values for."""
        return [component for component, _ in self._made]

    def in_language(self, language: str) -> list[dict]:
        """An update for each of the components."""
        return [gr.update(**{name: getattr(value, language) for name, value in both.items()}) for _, both in self._made]


@dataclass(frozen=True)
class Page:
    """Attributes:
    demo (`gr.Blocks`): the page itself, for its `load` event.
    words (`Words`): makes the components that have words.
    language (`gr.Radio`): `en` or `zh`.
    model (`gr.Dropdown`): the name of the model that is asked, out of `served_models.names()`.
    loaded (`gr.events.Dependency`): the event by which the page learns of its address, for what follows it.
    opened (`gr.State`): the parameters of the address, `None` until they are known; only the seed, if their model is not here.
    link (`gr.Textbox`): the same as a query, if they ask for images to be drawn.
    """

    demo: gr.Blocks
    words: Words
    language: gr.Radio
    model: gr.Dropdown
    loaded: gr.events.Dependency
    opened: gr.State
    link: gr.Textbox
    _updates: list = field(default_factory=list)

    def when_model_is_known(self, update: Callable, outputs: Any, with_link: bool = False) -> None:
        """Has `update(model)` fill the outputs when the page opens and whenever another model is chosen.

        Args:
            update: a function of the model's title, and, `with_link`, of the parameters of the address as well.
            outputs: one component or a list of them.
        """
        arguments = (lambda model, opened: (model, opened)) if with_link else (lambda model, opened: (model,))
        self._updates.append((update, arguments, outputs if isinstance(outputs, list) else [outputs]))

    def fill(self) -> None:
        """Makes the one event of all that [`when_model_is_known`] was told; called when every tab is there."""

        def everything(model: str | None, opened: dict | None) -> list:
            # What a link says is meant for its own model.
            asked = opened if opened and opened.get("model", model) == model else None
            values: list = []
            for update, arguments, outputs in self._updates:
                found = update(*arguments(model, asked))
                values += found if len(outputs) > 1 else [found]
            return values

        outputs = [output for _, _, outputs in self._updates for output in outputs]
        for happened in (self.loaded.then, self.model.change):
            happened(everything, [self.model, self.opened], outputs, **LIGHT)


# Of all events of the page. Values come as they were sent: each is checked where it is used, and an upload is not decoded
# by Gradio, which would do so whatever its size.
_RAW = {"preprocess": False, "api_visibility": "private", "show_progress": "hidden"}

# Of events that ask no network: they are answered at once, whatever is in the queue.
LIGHT = _RAW | {"queue": False}

# Of controls that are moved: the last position is what counts.
LIVE = LIGHT | {"trigger_mode": "always_last"}

# Of events that ask one: further visitors wait for their turn.
DRAWINGS_AT_A_TIME = 4
NETWORK = _RAW | {"concurrency_id": "network", "concurrency_limit": DRAWINGS_AT_A_TIME}


def note(en: str, zh: str, kind: str = "note") -> str:
    """A paragraph in both languages; the arguments are text, not HTML."""
    return f'<p class="{kind}">{Both(html.escape(en), html.escape(zh)).html}</p>'
