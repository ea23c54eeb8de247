"""A visitor of the demo: a real browser that talks to the demo's server alone."""

import contextlib
import io
import time
import weakref

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

PATIENCE_MS = 60_000
STREAMS = ("/heartbeat/", "/queue/data")  # never answered to the end while a page is open
expect.set_options(timeout=PATIENCE_MS)

_unanswered: weakref.WeakKeyDictionary[Page, set] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def visit(browser: Browser, url: str, size: tuple[int, int] = (1280, 900), dark: bool = False, language: str = "en"):
    """A visitor's page, once it is ready; at its end, nothing was asked of another server and the console holds no error.

    Args:
        browser: Chromium.
        url (`str`): the address of the server, with what follows the question mark.
        size (`tuple[int, int]`): of the window, in pixels.
        dark (`bool`): the theme that the visitor's system asks for.
        language (`str`): the language that the visitor's browser asks for.
    """
    elsewhere, errors = [], []
    server = url.partition("?")[0]

    def refuse(route) -> None:
        elsewhere.append(route.request.url)
        route.abort()

    with browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        locale={"en": "en-GB", "zh": "zh-CN"}[language],
    ) as context:
        context.set_default_timeout(PATIENCE_MS)
        context.route(lambda address: not address.startswith((server, "data:", "blob:")), refuse)
        page = context.new_page()
        _unanswered[page] = unanswered = set()
        page.on("request", lambda request: unanswered.add(request))
        page.on("requestfinished", lambda request: unanswered.discard(request))
        page.on("requestfailed", lambda request: unanswered.discard(request))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
    assert elsewhere == []
    assert errors == []


def settled(page: Page) -> None:
    """Waits until every answer of the server that the page has asked for has come, and the page has shown it."""
    before, deadline = None, time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 150)))")
        awaited = [each for each in _unanswered[page] if not any(part in each.url for part in STREAMS)]
        now = None if awaited else page.locator("main").inner_text()
        if now is not None and now == before:
            return
        before = now
    raise AssertionError("the page does not come to rest")


def says(page: Page, text, name: str = "samples") -> None:
    """Waits until the status of a way of drawing says a text, or what matches a pattern."""
    expect(page.locator(f"#{name}-status")).to_contain_text(text, use_inner_text=True)


def button(page: Page, name: str) -> Locator:
    """The visible button of this name."""
    return page.get_by_role("button", name=name, exact=True).filter(visible=True)


def open_tab(page: Page, name: str) -> None:
    """Opens a tab, out of the menu of those that have no room if it is there."""
    tab = page.get_by_role("tab", name=name, exact=True).filter(visible=True)
    if not tab.count():
        page.get_by_role("button", name="More tabs").first.click()
        tab = page.locator(".overflow-dropdown").get_by_text(name, exact=True)
    tab.first.click()


def set_slider(page: Page, label: str, value: float) -> None:
    """Types a number beside a slider that can be seen."""
    field = page.get_by_label(f"number input for {label}").filter(visible=True)
    field.fill(str(value))
    field.press("Tab")


def images(page: Page, name: str = "samples") -> list[np.ndarray]:
    """The images of a gallery, as the server sends them."""
    page.locator(f"#{name}-images img").first.wait_for()
    sources = page.locator(f"#{name}-images img").evaluate_all("all => all.map(image => image.src)")
    return [np.asarray(Image.open(io.BytesIO(page.request.get(source).body()))) for source in sources]
