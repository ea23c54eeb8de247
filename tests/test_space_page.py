"""The demo as a visitor meets it: a served process of its own and a real browser, which must be there."""

import io
import re

import numpy as np
import pytest
from conftest import make_pipeline, seeds
from PIL import Image
from playwright.sync_api import Page, expect
from space_browser import button, images, says, set_slider, settled, visit
from space_server import SpaceServer

SIZE = 64  # large enough for a thousand steps to outlast the patience of the tests


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    make_pipeline(size=SIZE).save_pretrained(folder / "model")
    make_pipeline(num_class_embeds=None).save_pretrained(folder / "classless")
    with SpaceServer([folder / "model", folder / "classless"], folder) as server:
        yield server
        server.assert_no_traceback()


@pytest.fixture
def page(server, browser):
    with visit(browser, server.url) as page:
        says(page, "Ready.")
        yield page


def ask(page: Page, class_name="one", count=3, num_steps=10, seed: str | None = "7") -> None:
    """Fills the form as a visitor does, and presses Generate; no seed asks for a random one."""
    page.get_by_label("Class", exact=True).first.fill(class_name)
    page.get_by_label("Class", exact=True).first.press("Enter")
    set_slider(page, "Images", count)
    set_slider(page, "Steps", num_steps)
    page.get_by_label("Another seed each time").first.set_checked(seed is None)
    if seed is not None:
        seed_field(page).fill(seed)
    button(page, "Generate").click()


def seed_field(page: Page):
    return page.get_by_label("Seed", exact=True).first


def own_images(**options) -> list[np.ndarray]:
    pipeline = make_pipeline(size=SIZE)
    return [np.asarray(image) for image in pipeline(num_inference_steps=10, **options).images]


def check(page: Page, expected: list[np.ndarray]) -> None:
    """The gallery shows these images, enlarged fourfold; another batch size rounds differently."""
    for shown, image in zip(images(page), expected, strict=True):
        np.testing.assert_allclose(shown[::4, ::4].astype(int), image.astype(int), atol=1)


def test_the_images_are_the_pipelines_and_the_same_request_draws_them_again(page):
    ask(page)
    says(page, "Done: 10 steps")
    expect(seed_field(page)).to_have_value("7")
    drawn = images(page)
    check(page, own_images(batch_size=3, class_labels=1, generator=seeds(7, 8, 9)))
    assert page.locator("#samples-images .caption-label").all_inner_texts() == ["7", "8", "9"]

    ask(page, count=1, seed="8")
    expect(page.locator("#samples-images img")).to_have_count(1)
    says(page, "Done: 10 steps")
    ask(page)
    expect(page.locator("#samples-images img")).to_have_count(3)
    np.testing.assert_array_equal(images(page), drawn)


def test_a_random_seed_is_shown_and_draws_the_same_images_again(page):
    seed_field(page).fill("7")
    ask(page, seed=None)
    says(page, "Done: 10 steps")
    seed, drawn = seed_field(page).input_value(), images(page)
    assert seed != "7"
    ask(page, num_steps=11, seed=seed)
    says(page, "Done: 11 steps")
    ask(page, seed=seed)
    says(page, "Done: 10 steps")
    np.testing.assert_array_equal(images(page), drawn)


def test_both_panels_move_and_stop_ends_the_computation(page, server):
    ask(page, count=16, num_steps=1000)
    says(page, re.compile(r"Step \d+ of 1000, \d+\.\d s left"))
    panels = page.locator("#samples-live img")
    expect(panels).to_have_count(2)
    for panel in panels.all():
        before = panel.get_attribute("src")
        assert before.startswith("data:image/png;base64,")
        expect(panel).not_to_have_attribute("src", before)
    assert [panel.get_attribute("alt") for panel in panels.all()] == ["x_t", "x̂_0"]
    assert page.locator("#samples-status progress").get_attribute("max") == "1000"
    button(page, "Stop").click()
    says(page, "Stopped.")
    assert server.becomes_idle()
    expect(page.locator("#samples-status")).to_have_text(
        "Stopped.", use_inner_text=True
    )  # no late preview has written over it

    ask(page)
    says(page, "Done: 10 steps")


def test_a_preview_that_comes_late_does_not_write_over_the_end(page):
    held = []
    page.route("**/cancel", lambda route: held.append(route))
    ask(page, count=16, num_steps=1000)
    says(page, "Step ")
    button(page, "Stop").click()
    before = page.locator("#samples-status").inner_text()
    expect(page.locator("#samples-status")).not_to_have_text(before, use_inner_text=True)
    says(page, "Step ")
    held.pop().continue_()
    says(page, "Stopped.")


def test_closing_the_page_ends_the_computation(server, browser):
    with visit(browser, server.url) as page:
        says(page, "Ready.")
        ask(page, count=16, num_steps=1000)
        says(page, "Step ")
    assert server.becomes_idle()
    assert " generate stopped " in server.said


def test_two_visitors_do_not_disturb_each_other(page, server, browser):
    ask(page)
    says(page, "Done")
    alone = images(page)
    with visit(browser, server.url) as other:
        says(other, "Ready.")
        ask(other, class_name="two", count=16, num_steps=1000)
        says(other, "Step ")
        ask(page, seed="8")
        expect(page.locator("#samples-images .caption-label").first).to_have_text("8")
        ask(page)
        expect(page.locator("#samples-images .caption-label").first).to_have_text("7")
        np.testing.assert_array_equal(images(page), alone)
        says(other, "Step ")  # a visitor who asks for little does not wait for one who asks for much
        button(other, "Stop").click()
        says(other, "Stopped.")


def test_a_link_draws_the_same_images_in_another_browser(page, server, browser):
    ask(page, class_name="two", count=2, num_steps=12, seed="4294967295")
    says(page, "Done: 12 steps")
    drawn = images(page)
    address = page.get_by_role("link", name="Link that draws these images again").evaluate("link => link.href")
    assert address.startswith(server.url)
    with visit(browser, address) as other:
        says(other, "Done: 12 steps")
        np.testing.assert_array_equal(images(other), drawn)
        expect(seed_field(other)).to_have_value("4294967295")
        expect(other.get_by_label("number input for Steps").first).to_have_value("12")
        expect(other.get_by_label("Class", exact=True).first).to_have_value("two")
        expect(other.get_by_label("Another seed each time").first).not_to_be_checked()


def test_a_link_may_name_another_model(server, browser):
    with visit(browser, f"{server.url}?model=classless&count=1&steps=3&sampler=ddim&guidance=1&seed=5") as page:
        says(page, "Done: 3 steps")
        (shown,) = images(page)
        own = make_pipeline(num_class_embeds=None)(batch_size=1, sampler="ddim", num_inference_steps=3, seed=5).images[
            0
        ]
        np.testing.assert_array_equal(shown[::28, ::28], np.asarray(own))
        expect(page.get_by_label("Model", exact=True).first).to_have_value("classless")


@pytest.mark.parametrize("query", ["?seed=no&class=one", "?model=/etc&seed=1&steps=9999"])
def test_a_link_that_asks_for_nonsense_is_refused_in_a_sentence(server, browser, query):
    with visit(browser, server.url + query) as page:
        says(page, re.compile("; it must be .*[.]"))
        ask(page)
        says(page, "Done: 10 steps")


@pytest.mark.parametrize("query", ["?seed=no", "?model=/etc&seed=1", "?model=classless&seed=1&sampler=no"])
def test_what_the_page_learns_late_does_not_write_over_a_refusal(page, server, query):
    config = page.evaluate("window.gradio_config")
    status = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "samples-status")
    events = {one["id"]: len(one["outputs"]) for one in config["dependencies"] if status in one["outputs"]}
    filling = {
        event for event, outputs in events.items() if outputs == max(events.values())
    }  # all that a model decides
    held = []

    def hold(route) -> None:
        if route.request.post_data_json["fn_index"] in filling:
            held.append(route)
        else:
            route.continue_()

    page.route("**/run/predict*", hold)
    page.goto(server.url + query)
    says(page, re.compile("; it must be .*[.]"))
    assert held
    filling.clear()
    for route in held:
        route.continue_()
    settled(page)
    says(page, re.compile("; it must be .*[.]"))


def test_the_animation_is_the_way_of_the_same_images(page):
    expect(button(page, "Show the way there as an animation")).to_be_disabled()
    ask(page)
    says(page, "Done: 10 steps")
    button(page, "Show the way there as an animation").click()
    picture = page.locator("#animation img")
    expect(picture).to_be_visible()
    with Image.open(io.BytesIO(page.request.get(picture.get_attribute("src")).body())) as animation:
        assert (animation.format, animation.n_frames) == ("WEBP", 10)


def test_an_example_is_shown_at_once_when_it_is_asked_for_again(page, server):
    example = page.locator("#examples button").nth(1)
    example.click()
    says(page, "Done")
    drawn, seconds = images(page), page.locator("#samples-status").inner_text()
    ask(page)
    expect(page.locator("#samples-images img")).to_have_count(3)
    example.click()
    says(page, seconds)  # the very drawing of before, and not one more
    np.testing.assert_array_equal(images(page), drawn)
    assert len(drawn) == 8
    expect(seed_field(page)).to_have_value("1")
    ask(page, class_name="one", count=8, num_steps=100, seed="1")
    expect(page.locator("#samples-status")).not_to_contain_text(seconds)
    says(page, "Done: 100 steps")
    np.testing.assert_array_equal(images(page), drawn)


def test_another_model_has_other_classes(page):
    page.get_by_label("Model", exact=True).first.click()
    page.get_by_role("option", name="classless").click()
    settled(page)
    page.get_by_label("Class", exact=True).first.click()
    expect(page.get_by_role("option")).to_have_text([re.compile("any · 任意$")])


def test_a_refusal_is_one_sentence_and_the_next_request_is_served(page):
    allowed = "it must be a whole number from 0 to 4294967295."
    for request, message in (
        ({"seed": "-1"}, f"Seed is -1; {allowed}"),
        ({"seed": "1.5"}, f"Seed is 1.5; {allowed}"),
        ({"seed": ""}, f"Seed is empty; {allowed}"),
        ({"class_name": "<b>purple"}, "Class is '<b>purple'; it must be one of any, zero, one, two."),
    ):
        ask(page, **request)
        expect(page.get_by_test_id("toast-body").last).to_contain_text(message, use_inner_text=True)
        says(page, message)
        assert "Traceback" not in page.content()
    ask(page)
    says(page, "Done: 10 steps")


def test_a_page_without_a_model_says_what_to_run_and_serves_once_it_is_trained(browser, tmp_path):
    model = tmp_path / "model"
    with SpaceServer([model], tmp_path) as server, visit(browser, server.url) as page:
        problem = page.locator("#problem")
        expect(problem).to_contain_text("No trained model model: run `make train`, or set DDPM_HUB_MODEL")
        expect(button(page, "Generate")).to_be_disabled()

        make_pipeline().save_pretrained(model)
        weights = model / "unet" / "diffusion_pytorch_model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:1000])
        page.reload()
        expect(problem).to_contain_text("The model model is damaged: run `make train` again, or copy its folder whole.")
        expect(button(page, "Generate")).to_be_disabled()

        weights.write_bytes(whole)
        page.reload()
        says(page, "Ready.")
        ask(page)
        says(page, "Done: 10 steps")
        server.assert_no_traceback()
        assert str(model) in server.said  # where it was looked for is for whoever reads the log
        assert str(model) not in page.content()


def test_a_phone_shows_every_image_and_scrolls_only_down(server, browser):
    with visit(browser, server.url, (390, 844)) as page:
        says(page, "Ready.")
        ask(page, count=8)
        says(page, "Done")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        gallery = page.locator("#samples-images").bounding_box()
        boxes = [image.bounding_box() for image in page.locator("#samples-images img").all()]
        assert len(boxes) == 8
        for box in boxes:
            assert box["width"] == box["height"] > 60
            assert box["x"] + box["width"] <= 390
            assert box["y"] + box["height"] <= gallery["y"] + gallery["height"]
