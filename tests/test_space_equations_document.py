"""The demo's Markdown of docs/EQUATIONS.md: each language whole and alone, and typeset by Gradio's KaTeX in a browser."""

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import equations_document
import pytest
from conftest import REPOSITORY
from playwright.sync_api import sync_playwright

SPACE = Path(equations_document.__file__).parent
SOURCE = (REPOSITORY / "docs" / "EQUATIONS.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| .*$(?!\n\|-)", SOURCE, re.MULTILINE)
CHINESE = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")  # with its punctuation
FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$")

SERVE = """
import equations_document
import gradio as gr

CSS = '''
.katex-display { overflow-x: auto; overflow-y: hidden; }
#en code, #zh code { display: inline; overflow-wrap: anywhere; }
'''
DELIMITERS = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]
with gr.Blocks(analytics_enabled=False) as demo:
    for language in equations_document.LANGUAGES:
        gr.Markdown(equations_document.markdown(language), latex_delimiters=DELIMITERS, elem_id=language)
demo.launch(ssr_mode=False, css=CSS, theme=gr.themes.Soft(font=["system-ui"], font_mono=["monospace"]))
"""
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
ALL_TYPESET = "['en', 'zh'].every(id => document.querySelector(`#${id} .katex`))"
# What is cut off at the right edge of the screen; a long formula scrolls in a line of its own.
CUT_OFF = """
[...document.querySelectorAll('h2, h3, h4, p, li, code, small, .katex-html, .katex-display')]
    .filter(element => !element.parentElement.closest('.katex-display'))
    .filter(element => element.getBoundingClientRect().right > innerWidth)
    .map(element => element.textContent)
"""


def formulas(text: str) -> list[str]:
    return [display or inline for display, inline in FORMULA.findall(text)]


def blocks(language: str) -> list[str]:
    """The Markdown's part of each row, without what follows the last row of a table."""
    parts = re.split(r"^#### ", equations_document.markdown(language), flags=re.MULTILINE)[1:]
    return [part.partition("\n### ")[0] for part in parts]


def test_sections():
    titles = ["The equations", "Stated in the notes", "Beyond the notes", "Slips in the notes"]
    english, chinese = (equations_document.sections(language) for language in equations_document.LANGUAGES)
    assert [section.title for section in english] == titles
    assert sum(len(section.rows) for section in english) == len(ROWS) > 40
    for ours, theirs in zip(english, chinese, strict=True):
        assert len(ours.paragraphs) == len(theirs.paragraphs)
        assert len(ours.remarks) == len(theirs.remarks)
        assert {len(row) for row in ours.rows + theirs.rows} <= {len(ours.columns)} == {len(theirs.columns)}


def test_the_language_of_a_cell():
    cell = r"with $a / b; c$: `x / y`; $d$ / 取 $a / b; c$: `x / y`; $d$"
    assert equations_document._in_language(cell, "en") == r"with $a / b; c$: `x / y`; $d$"
    assert equations_document._in_language(cell, "zh") == r"取 $a / b; c$: `x / y`; $d$"
    assert equations_document._in_language("S2 (6)", "zh") == "S2 (6)"


def test_an_unknown_language():
    for ask in (equations_document.sections, equations_document.markdown):
        with pytest.raises(ValueError, match=r"`language` is 'de'; it must be one of 'en', 'zh'\."):
            ask("de")


@pytest.mark.parametrize("language", equations_document.LANGUAGES)
def test_every_row_is_there(language):
    side = equations_document.LANGUAGES.index(language)
    for row, block in zip(ROWS, blocks(language), strict=True):
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        texts = [cell.split(" / ")[side] if " / " in cell else cell for cell in cells]
        expected = formulas(" ".join(texts))
        assert formulas(block)[: len(expected)] == expected
        for words in re.split(r"\$[^$]*\$", " ".join(texts[1:])):
            assert [word for word in re.split(r"[; ]+", words) if word not in block] == []


def test_english_has_no_chinese():
    assert CHINESE.findall(equations_document.markdown("en")) == []


def test_chinese_is_chinese():
    for section in equations_document.sections("zh"):
        names = [row[0] for row in section.rows if not re.fullmatch(r"S\d( \(\d+\))?", row[0])]
        prose = [section.title, *section.paragraphs, *section.columns, *names, *section.remarks]
        assert [text for text in prose if not CHINESE.search(text)] == []
    english = {text for section in equations_document.sections("en") for text in [section.title, *section.columns]}
    assert [text for text in english if f" {text}\n" in equations_document.markdown("zh")] == []


@pytest.mark.parametrize("language", equations_document.LANGUAGES)
def test_an_equation_stands_in_a_line_of_its_own(language):
    slips = len(equations_document.sections(language)[-1].rows)
    own_line = re.compile(r"^\$\$[^$]+\$\$$", re.MULTILINE)
    within_words = [ROWS[i] for i, block in enumerate(blocks(language)[:-slips]) if not own_line.search(block)]
    assert [row.split(" / ")[0] for row in within_words] == ["| posterior, any s < t"]


def test_on_the_hub_the_document_lies_below(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "EQUATIONS.md").write_text("# One / 一\n\nHere.\n\n这里。\n", encoding="utf-8")
    shutil.copy(equations_document.__file__, tmp_path)
    spec = importlib.util.spec_from_file_location("equations_of_the_hub", tmp_path / "equations_document.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert tmp_path / "docs" / "EQUATIONS.md" == module.DOCUMENT
    assert module.markdown("zh") == "## 一\n\n这里。\n"
    assert equations_document.DOCUMENT == REPOSITORY / "docs" / "EQUATIONS.md"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Both languages on one page, served by a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("equations") / "log.txt"
    environment = {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE], cwd=SPACE, env=os.environ | environment, stdout=output, stderr=output
        )
    deadline = time.monotonic() + 120
    try:
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"the page is not served:\n{log.read_text()}")
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def page(url):
    """The page on a phone's screen."""
    system = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=system, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.wait_for_function(ALL_TYPESET)
        yield page
        browser.close()


@pytest.mark.parametrize("language", equations_document.LANGUAGES)
def test_katex_typesets_every_formula(page, language):
    text = equations_document.markdown(language)
    shown = page.locator(f"#{language}")
    # It marks what it cannot read as an error, and draws a command that it does not know in red.
    assert shown.locator(".katex-error, [mathcolor]").all_text_contents() == []
    # KaTeX keeps what it was given beside what it draws.
    assert shown.locator("annotation").all_text_contents() == formulas(text)
    assert shown.locator(".katex-display").count() == len(re.findall(r"\$\$[^$]+\$\$", text))
    assert "$" not in shown.inner_text()


@pytest.mark.parametrize("language", equations_document.LANGUAGES)
def test_every_row_is_a_heading(page, language):
    names = [row[0] for section in equations_document.sections(language) for row in section.rows]
    assert page.locator(f"#{language} h4").all_inner_texts() == names


def test_nothing_is_cut_off_on_a_phone(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(CUT_OFF) == []
