"""Every tab of the demo: both languages, two sizes of window, light and dark, keyboard, and what a screen reader needs."""

import math
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import make_pipeline
from PIL import Image
from playwright.sync_api import Page, expect
from space_browser import button, images, open_tab, says, set_slider, settled, visit
from space_server import SpaceServer

TABS = {
    "en": ["Generate", "Forward", "Reverse", "Schedule", "Edit", "Equations", "Model"],
    "zh": ["生成", "前向过程", "逆向过程", "噪声调度", "编辑", "公式", "模型"],
}
DESKTOP, PHONE = (1280, 900), (390, 844)
CHINESE = re.compile("[一-鿿]")
# Words of Gradio's own, which follow the browser's language, and names of the field.
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    make_pipeline().save_pretrained(folder / "model")
    (folder / "model" / "README.md").write_text("# A card\n\n![a grid](grid.png)\n", encoding="utf-8")
    Image.new("L", (8, 8)).save(folder / "model" / "grid.png")
    with SpaceServer([folder / "model"], folder) as server:
        yield server
        server.assert_no_traceback()


def ready(page: Page, language: str) -> None:
    says(page, {"en": "Ready.", "zh": "就绪。"}[language])


def seen_text(page: Page) -> str:
    return page.locator("main").inner_text()


@pytest.mark.parametrize(
    ("size", "dark", "language"),
    [(DESKTOP, True, "en"), (PHONE, False, "zh")],
    ids=["desktop, dark, English", "phone, light, Chinese"],
)
def test_a_tour_of_every_tab(server, browser, size, dark, language):
    with visit(browser, server.url, size, dark, language) as page:
        ready(page, language)
        assert page.evaluate("document.documentElement.lang") == language
        assert page.evaluate("document.body.classList.contains('dark')") == dark
        # The equations last: axe looks at what is hidden too, and of them there are ten thousand pieces.
        for name in sorted(TABS[language], key=lambda name: name in ("Equations", "公式")):
            open_tab(page, name)
            expect(page.get_by_role("tabpanel").filter(visible=True).first).not_to_be_empty()
            settled(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0], name
            found = Axe().run(page)
            serious = [each for each in found.response["violations"] if each["impact"] in SERIOUS]
            assert serious == [], (name, found.generate_report())


def test_the_language_of_the_whole_page_can_be_changed(server, browser):
    with visit(browser, server.url) as page:
        ready(page, "en")
        assert [tab.inner_text() for tab in page.get_by_role("tab").filter(visible=True).all()] == TABS["en"]
        page.get_by_label("中文").check()
        ready(page, "zh")
        expect(page.get_by_role("tab", name="公式")).to_be_visible()
        assert page.evaluate("document.documentElement.lang") == "zh"
        for name in TABS["zh"][:-1]:  # the card of a model is in its own language
            open_tab(page, name)
            settled(page)
            lines = [line for line in seen_text(page).splitlines() if re.search("[a-z]{4}.*[a-z]{4}", line)]
            english = [line for line in lines if not CHINESE.search(line) and not re.search("[_./:$()]|DDPM|DPM", line)]
            assert english == [], name
        page.get_by_label("English").check()
        expect(page.get_by_role("tab", name="Equations")).to_be_visible()
        ready(page, "en")


def test_forward_shows_the_numbers_of_the_model_and_both_ways_agree(server, browser):
    with visit(browser, server.url) as page:
        ready(page, "en")
        open_tab(page, "Forward")
        set_slider(page, "t: steps of noise", 500)
        scheduler = make_pipeline().scheduler
        abar = math.exp(scheduler.log_alphas_cumprod[500])
        panel = page.get_by_role("tabpanel").filter(visible=True).first
        expect(panel).to_contain_text(f"{abar**0.5:.4f}")
        expect(panel).to_contain_text(f"{(1 - abar) ** 0.5:.4f}")
        expect(panel).to_contain_text("The same, up to rounding")


def test_the_schedule_of_the_slip_is_no_noise_and_the_papers_is(server, browser):
    with visit(browser, server.url) as page:
        ready(page, "en")
        open_tab(page, "Schedule")
        panel = page.get_by_role("tabpanel").filter(visible=True).first
        expect(panel.locator(".answer")).to_have_text("xT is noise.", use_inner_text=True)
        page.get_by_label("Slip: β to 0.002").check()
        expect(panel.locator(".answer")).to_have_text("xT is not noise.", use_inner_text=True)
        expect(panel).to_contain_text("0.35")


def test_the_film_of_one_sample_can_be_walked_through(server, browser):
    with visit(browser, server.url) as page:
        ready(page, "en")
        open_tab(page, "Reverse")
        set_slider(page, "Steps", 12)
        button(page, "Draw one sample").click()
        film = page.locator(".film img")
        expect(film.first).to_be_visible()
        title = page.locator(".moment-title")
        expect(title).to_be_visible()
        before = title.inner_text()
        page.get_by_role("slider").filter(visible=True).last.press("ArrowLeft")
        expect(title).not_to_have_text(before, use_inner_text=True)


# --- Edit ---


@pytest.fixture
def editing(server, browser):
    with visit(browser, server.url) as page:
        ready(page, "en")
        open_tab(page, "Edit")
        expect(page.locator("#brush canvas")).to_have_attribute("width", "8")
        yield page


def painted(page: Page) -> int:
    count = "canvas => canvas.getContext('2d').getImageData(0, 0, 8, 8).data.filter((v, i) => i % 4 === 3 && v).length"
    return page.locator("#brush canvas").evaluate(count)


def draw(page: Page, **sliders: float) -> None:
    page.get_by_role("button", name="Sampler, steps, guidance, seed").filter(visible=True).click()
    for label, value in sliders.items():
        set_slider(page, label, value)
    button(page, "Draw").click()


def test_what_the_brush_marks_is_painted_and_the_rest_stays(editing):
    canvas = editing.locator("#brush canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    at = lambda column, row: (box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8)  # noqa: E731
    editing.mouse.move(*at(2, 2))
    editing.mouse.down()
    editing.mouse.move(*at(5, 2), steps=4)
    editing.mouse.up()
    assert painted(editing) == 4
    draw(editing, Images=2, Steps=5, Resamplings=1)
    says(editing, "Done: 5 steps", "edited")
    first, second = (image[::28, ::28] for image in images(editing, "edited"))
    differs = first != second
    assert differs.any()
    assert np.argwhere(differs)[:, 0].tolist() == [2] * differs.sum()
    assert set(np.argwhere(differs)[:, 1].tolist()) <= {2, 3, 4, 5}


def test_the_brush_works_without_a_mouse(editing):
    canvas = editing.locator("#brush canvas")
    canvas.focus()
    for key in ("ArrowUp", "Space", "ArrowRight", "Space", "Space", "ArrowRight", "Space"):
        canvas.press(key)
    canvas.press("Tab")  # the cursor is painted only while it is there
    assert painted(editing) == 2


def test_nothing_marked_is_refused_and_a_half_is_one_click(editing):
    draw(editing, Images=1, Steps=5, Resamplings=1)
    says(editing, "Nothing is marked: paint over what is to be drawn anew.", "edited")
    button(editing, "Left half").click()
    expect(editing.locator("#brush canvas")).to_be_visible()
    button(editing, "Draw").click()
    says(editing, "Done: 5 steps", "edited")
    assert painted(editing) == 32


def test_an_image_is_drawn_anew_from_noise(editing):
    open_tab(editing, "Noise and draw anew")
    settled(editing)  # a tab gets its controls when it is first opened
    set_slider(editing, "Strength", 0.01)
    draw(editing, Images=1, Steps=20)
    says(editing, "Done: 1 steps", "edited")


def test_a_row_leads_from_one_seed_to_another(editing):
    open_tab(editing, "Between two seeds")
    settled(editing)
    draw(editing, Images=5, Steps=5)
    says(editing, "Done: 5 steps", "edited")
    captions = editing.locator("#edited-images .caption-label").all_inner_texts()
    assert captions == ["0%", "25%", "50%", "75%", "100%"]


def test_a_picture_that_is_no_picture_is_refused_in_a_sentence(editing, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    editing.get_by_label("Remove Image").first.click()
    editing.locator("input[type=file]").first.set_input_files(tmp_path / "broken.png")
    expect(editing.locator("#source-problem")).to_contain_text("The image cannot be read", use_inner_text=True)


# --- Equations, Model, keyboard ---


def test_every_equation_is_typeset(server, browser):
    with visit(browser, server.url) as page:
        ready(page, "en")
        open_tab(page, "Equations")
        document = page.locator(".prose.document.en")
        expect(document.locator(".katex").first).to_be_visible()
        assert document.locator(".katex").count() > 60
        assert page.locator(".katex-error").count() == 0
        assert "$" not in document.inner_text()
        expect(page.locator(".prose.document.zh")).to_be_hidden()


def test_the_card_of_the_model_is_shown_with_its_pictures(server, browser):
    with visit(browser, server.url) as page:
        ready(page, "en")
        open_tab(page, "Model")
        expect(page.locator("#model-card h1")).to_have_text("A card")
        picture = page.locator("#model-card img")
        expect(picture).to_have_attribute("alt", "a grid")
        assert picture.evaluate("image => image.naturalWidth") == 8


def test_images_can_be_drawn_by_the_keyboard_alone(server, browser):
    with visit(browser, server.url) as page:
        ready(page, "en")
        for _ in range(60):
            page.keyboard.press("Tab")
            if (
                page.evaluate(
                    "document.activeElement.matches('button:not([role=tab])') && document.activeElement.innerText"
                )
                == "Generate"
            ):
                break
        focused = page.evaluate(
            "getComputedStyle(document.activeElement).outlineStyle + document.activeElement.tagName"
        )
        assert focused.endswith("BUTTON")
        page.keyboard.press("Enter")
        says(page, "Done")
