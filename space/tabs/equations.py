"""Equations: every equation that the package implements, typeset, and the slips of the notes."""

import equations_document
import gradio as gr
from both_languages import Both
from page import Page

DELIMITERS = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]


def build(page: Page) -> None:
    """Makes the tab."""
    with page.words(gr.Tab, label=Both("Equations", "公式"), id="equations"):
        for language in ("en", "zh"):
            gr.Markdown(
                equations_document.markdown(language),
                latex_delimiters=DELIMITERS,
                elem_classes=["document", language],
            )
