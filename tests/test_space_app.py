"""The demo as a visitor meets it: a served process of its own and a real browser, which must be there."""

import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import REPOSITORY, make_pipeline, seeds
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

SIZE = 64  # large enough for a thousand steps to outlast the patience of the tests
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PATIENCE_MS = 60_000
IDLE_SECONDS = 15


class Server:
    """`python space/app.py`, from the moment it answers until it is closed."""

    def __init__(self, model: Path, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self.log = log
        environment = {
            "DDPM_HUB_MODEL": str(model),
            "GRADIO_SERVER_PORT": str(port),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(log.parent / "gradio"),
            "CUDA_VISIBLE_DEVICES": "",
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "space/app.py"],
                cwd=REPOSITORY,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.fail(f"space/app.py does not serve:\n{log.read_text()}")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def becomes_idle(self) -> bool:
        process, deadline = psutil.Process(self.process.pid), time.monotonic() + IDLE_SECONDS
        while time.monotonic() < deadline:
            if process.cpu_percent(interval=0.5) < 25:
                return True
        return False


@contextlib.contextmanager
def serve(model: Path, log: Path):
    server = Server(model, log)
    try:
        yield server
    finally:
        server.close()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    make_pipeline(size=SIZE).save_pretrained(folder / "model")
    with serve(folder / "model", folder / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium or Chrome, else Playwright's own; where none is found, the tests fail."""
    system = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=system, args=FLAGS.split())
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser: Browser, url: str, width: int = 1280, height: int = 900):
    """A visitor's page; at its end, nothing was asked of another server and the console holds no error."""
    elsewhere, errors = [], []

    def refuse(route) -> None:
        elsewhere.append(route.request.url)
        route.abort()

    with browser.new_context(viewport={"width": width, "height": height}) as context:
        context.set_default_timeout(PATIENCE_MS)
        context.route(lambda address: not address.startswith((url, "data:", "blob:")), refuse)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
    assert elsewhere == []
    assert errors == []


@pytest.fixture
def page(server, browser):
    with visit(browser, server.url) as page:
        says(page, "Ready. Model: model")
        yield page


def says(page: Page, text: str | re.Pattern) -> None:
    expect(page.locator("#status")).to_contain_text(text, timeout=PATIENCE_MS)


def button(page: Page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def ask(page: Page, class_name="one", count=3, num_steps=10, seed: str | None = "7") -> None:
    """Fills the form as a visitor does, and presses Generate; no seed asks for a random one."""
    page.get_by_label("Class", exact=True).fill(class_name)
    page.get_by_label("Class", exact=True).press("Enter")
    for label, value in (("Images", count), ("Steps", num_steps)):
        page.get_by_label(f"number input for {label}").fill(str(value))
        page.get_by_label(f"number input for {label}").press("Tab")
    page.get_by_label("Random seed").set_checked(seed is None)
    if seed is not None:
        seed_field(page).fill(seed)
    button(page, "Generate").click()


def seed_field(page: Page):
    return page.get_by_label("Seed", exact=True)


def images(page: Page) -> list[np.ndarray]:
    """The gallery's images, as the server sends them."""
    sources = page.locator("#samples img").evaluate_all("all => all.map(image => image.src)")
    return [np.asarray(Image.open(io.BytesIO(page.request.get(source).body()))) for source in sources]


def test_the_images_are_the_pipelines_and_the_same_request_draws_them_again(page):
    ask(page)
    says(page, "Done in 10 steps, from seed 7 to 9.")
    expect(seed_field(page)).to_have_value("7")
    drawn = images(page)
    own = make_pipeline(size=SIZE)(batch_size=3, class_labels=1, num_inference_steps=10, generator=seeds(7, 8, 9))
    for shown, image in zip(drawn, own.images, strict=True):
        np.testing.assert_allclose(shown[::4, ::4].astype(int), np.asarray(image), atol=1)

    ask(page, count=1, seed="8")
    says(page, "Done in 10 steps, from seed 8.")
    assert len(images(page)) == 1
    ask(page)
    says(page, "Done in 10 steps, from seed 7 to 9.")
    np.testing.assert_array_equal(images(page), drawn)


def test_a_random_seed_is_shown_and_draws_the_same_images_again(page):
    seed_field(page).fill("7")
    ask(page, seed=None)
    says(page, "Done in 10 steps")
    seed, drawn = seed_field(page).input_value(), images(page)
    assert seed != "7"
    ask(page, num_steps=11, seed=seed)
    says(page, "Done in 11 steps")
    ask(page, seed=seed)
    says(page, f"Done in 10 steps, from seed {seed}")
    np.testing.assert_array_equal(images(page), drawn)


def test_previews_are_seen_and_stop_ends_the_computation(page, server):
    ask(page, count=16, num_steps=1000)
    says(page, re.compile(r"Step \d+ of 1000"))
    expect(page.locator("#samples img")).to_have_count(16)
    preview = page.locator("#samples img").first.get_attribute("src")
    expect(page.locator("#samples img").first).not_to_have_attribute("src", preview, timeout=PATIENCE_MS)
    assert page.locator("#status progress").get_attribute("max") == "1000"
    button(page, "Stop").click()
    says(page, "Stopped.")
    assert server.becomes_idle()
    expect(page.locator("#status")).to_have_text("Stopped.")  # no late preview has written over it

    ask(page)
    says(page, "Done in 10 steps")


def test_a_preview_that_comes_late_does_not_write_over_the_end(page):
    held = []
    page.route("**/cancel", lambda route: held.append(route))
    ask(page, count=16, num_steps=1000)
    says(page, "Step ")
    button(page, "Stop").click()
    before = page.locator("#status").inner_text()
    expect(page.locator("#status")).not_to_have_text(before, timeout=PATIENCE_MS)
    says(page, "Step ")
    held.pop().continue_()
    says(page, "Stopped.")


def test_closing_the_page_ends_the_computation(server, browser):
    with visit(browser, server.url) as page:
        says(page, "Ready.")
        ask(page, count=16, num_steps=1000)
        says(page, "Step ")
    assert server.becomes_idle()


def test_two_visitors_do_not_disturb_each_other(page, server, browser):
    ask(page)
    says(page, "Done")
    alone = images(page)
    with visit(browser, server.url) as other:
        says(other, "Ready.")
        ask(other, class_name="two", count=16, num_steps=1000)
        says(other, "Step ")
        ask(page, seed="8")
        says(page, "from seed 8")
        ask(page)
        says(page, "from seed 7")
        np.testing.assert_array_equal(images(page), alone)
        says(other, "Step ")  # a visitor who asks for little does not wait for one who asks for much
        button(other, "Stop").click()
        says(other, "Stopped.")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"seed": "-1"}, "Seed is -1; it must be a whole number from 0 to 4294967295."),
        ({"seed": "4294967296"}, "Seed is 4294967296; it must be a whole number from 0 to 4294967295."),
        ({"seed": "1.5"}, "Seed is 1.5; it must be a whole number from 0 to 4294967295."),
        ({"seed": ""}, "Seed is empty; it must be a whole number from 0 to 4294967295."),
        ({"class_name": "purple"}, "Class is 'purple'; it must be one of any, zero, one, two."),
    ],
)
def test_a_refusal_is_one_sentence_and_the_next_request_is_served(page, request_, message):
    ask(page, **request_)
    expect(page.get_by_test_id("toast-body")).to_contain_text(message)
    says(page, message)
    assert "Traceback" not in page.content()
    ask(page)
    says(page, "Done in 10 steps")


def test_a_page_without_a_model_says_what_to_run_and_serves_once_it_is_trained(browser, tmp_path):
    model = tmp_path / "model"
    with serve(model, tmp_path / "log.txt") as server, visit(browser, server.url) as page:
        says(page, f"No trained model at {model}: run `make train`, or set DDPM_HUB_MODEL to a model's folder.")
        expect(button(page, "Generate")).to_be_disabled()

        make_pipeline().save_pretrained(model)
        weights = model / "unet" / "diffusion_pytorch_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:1000])
        page.reload()
        says(page, f"The model at {model} is damaged: run `make train` again, or copy its folder whole.")
        expect(button(page, "Generate")).to_be_disabled()

        weights.write_bytes(whole)
        page.reload()
        says(page, "Ready. Model: model")
        ask(page)
        says(page, "Done in 10 steps")


def test_a_phone_shows_every_image_and_scrolls_only_down(server, browser):
    with visit(browser, server.url, width=390, height=844) as page:
        says(page, "Ready.")
        ask(page, count=8)
        says(page, "Done")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        gallery = page.locator("#samples").bounding_box()
        boxes = [image.bounding_box() for image in page.locator("#samples img").all()]
        assert len(boxes) == 8
        for box in boxes:
            assert box["width"] == box["height"] > 60
            assert box["x"] + box["width"] <= 390
            assert box["y"] + box["height"] <= gallery["y"] + gallery["height"]
