"""The demo's API as programs meet it: named endpoints, MCP tools, and everything that nobody should send."""

import asyncio
import json
import random
import re

import httpx
import numpy as np
import pytest
from answers import BUSY
from conftest import make_pipeline
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from space_server import SpaceServer

ENDPOINTS = (
    "equations", "forward", "generate", "img2img", "inpaint", "interpolate", "model", "models", "posterior", "schedule",
    "trajectory",
)  # fmt: skip

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    make_pipeline().save_pretrained(folder / "model")
    (folder / "secret.txt").write_text("nobody may read this")
    with SpaceServer([folder / "model"], folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(path)
    return path


def pixels(paths: list[str]) -> np.ndarray:
    found = []
    for path in paths:
        with Image.open(path) as image:
            found.append(np.asarray(image))
    return np.stack(found)


def call(server: SpaceServer, name: str, data: object) -> tuple[int, str]:
    """What an endpoint answers to a list of values, without a client in between: the status, and what it says."""
    begun = httpx.post(
        f"{server.url}gradio_api/call/{name}", content=json.dumps({"data": data}), headers=JSON, timeout=60
    )
    if begun.status_code != 200:
        return begun.status_code, begun.text
    answer = httpx.get(f"{server.url}gradio_api/call/{name}/{begun.json()['event_id']}", timeout=60)
    return answer.status_code, answer.text


def serves(server: SpaceServer, client: Client) -> None:
    """Whether it still draws what it should."""
    seed = random.randrange(2**32 - 1)  # what was drawn lately is kept
    images, _ = client.predict(class_name="one", count=2, seed=seed, num_steps=4, api_name="/generate")
    own = make_pipeline()(batch_size=2, class_labels=1, num_inference_steps=4, seed=[seed, seed + 1]).images
    # Whoever uses the two cores beside decides how the network rounds.
    np.testing.assert_allclose(pixels(images).astype(int), np.stack([np.asarray(image) for image in own]), atol=1)
    assert server.process.poll() is None


# --- What it is for ---


def test_every_endpoint_is_documented(client):
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert sorted(described) == [f"/{name}" for name in ENDPOINTS]


def test_images_are_the_pipelines(server, client):
    serves(server, client)


def test_edited_images_are_the_pipelines(client, picture, tmp_path):
    image, mask = Image.fromarray(pixels([picture])[0]), np.zeros((8, 8), bool)
    mask[:, :3] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    settings = {"class_name": "two", "num_steps": 6, "seed": 5, "sampler": "ddim"}
    own = {"class_labels": 2, "num_inference_steps": 6, "sampler": "ddim"}
    given = {"image": handle_file(picture), **settings}
    found, _ = client.predict(**given, mask=handle_file(tmp_path / "mask.png"), resamplings=2, api_name="/inpaint")
    expected = make_pipeline().inpaint(image, mask, resamplings=2, seed=5, **own).images[0]
    np.testing.assert_allclose(pixels(found)[0].astype(int), np.asarray(expected), atol=1)
    found, _ = client.predict(**given, strength=0.6, api_name="/img2img")
    expected = make_pipeline().img2img(image, 0.6, seed=5, **own).images[0]
    np.testing.assert_allclose(pixels(found)[0].astype(int), np.asarray(expected), atol=1)
    del settings["seed"]
    found, _ = client.predict(first_seed=1, second_seed=2, count=3, **settings, api_name="/interpolate")
    expected = make_pipeline().interpolate(1, 2, 3, **own).images
    np.testing.assert_allclose(pixels(found).astype(int), np.stack([np.asarray(each) for each in expected]), atol=1)


def test_a_trajectory_is_an_animation(client):
    with Image.open(client.predict(num_steps=7, api_name="/trajectory")) as animation:
        assert (animation.format, animation.n_frames) == ("WEBP", 7)


def test_the_mathematics(client, picture):
    log_alpha_bars = make_pipeline().scheduler.log_alphas_cumprod
    noisy, numbers = client.predict(image=handle_file(picture), timestep=400, api_name="/forward")
    assert pixels([noisy]).shape == (1, 8, 8)
    assert numbers["sqrt_alpha_bar"] == pytest.approx(float((log_alpha_bars[400] / 2).exp()), rel=1e-12)
    posterior = client.predict(timestep=400, previous_timestep=100, api_name="/posterior")
    assert (posterior["t"], posterior["s"]) == (400, 100)
    assert posterior["alpha_bar_s"] == pytest.approx(float(log_alpha_bars[100].exp()), rel=1e-12)
    slip = client.predict(beta_end=0.002, api_name="/schedule")
    assert not slip["x_T_is_noise"]
    assert slip["alpha_bar_T"] == pytest.approx(0.35, abs=0.005)


def test_texts_and_facts(client):
    assert r"\bar\alpha_t" in client.predict(language="zh", api_name="/equations")
    (known,) = client.predict(api_name="/models")
    assert (known["title"], known["classes"], known["height"]) == ("model", ["any", "zero", "one", "two"], 8)
    assert client.predict(api_name="/model")["title"] == "model"


def test_the_endpoints_are_tools(server):
    async def use() -> tuple:
        async with (
            streamable_http_client(f"{server.url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            answer = await session.call_tool("posterior", {"timestep": 10})
            refusal = await session.call_tool("generate", {"class_name": "nine"})
            quoted = await session.call_tool("generate", {"seed": "x" * 5000})
            return tools, answer, refusal, quoted

    tools, answer, refusal, quoted = asyncio.run(use())
    assert sorted(tool.name for tool in tools) == list(ENDPOINTS)
    for tool in tools:
        assert tool.description
        for name, schema in tool.inputSchema["properties"].items():
            assert schema["description"], (tool.name, name)
    assert "weight_x0" in answer.content[0].text
    assert refusal.isError
    assert refusal.content[0].text == "Class is 'nine'; it must be one of any, zero, one, two."
    assert quoted.isError  # by MCP's library, which would quote all of it
    assert re.fullmatch(r"Input validation error: 'x{100,}…x+' is not of type 'integer'\.", quoted.content[0].text)
    assert len(quoted.content[0].text) < 320


# --- What nobody should send ---


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("generate", {"class_name": "nine"}, "Class is 'nine'; it must be one of any, zero, one, two."),
        ("generate", {"count": 17}, "Images is 17; it must be a whole number from 1 to 16."),
        ("generate", {"num_steps": 10**9}, "Steps is 1000000000; it must be a whole number from 1 to 1000."),
        ("generate", {"seed": "x"}, "Seed is 'x'; it must be a whole number from 0 to 4294967295."),
        ("generate", {"model": "/etc"}, "Model is '/etc'; it must be one of model."),
        ("interpolate", {"first_seed": 1, "second_seed": None}, "Second seed is empty; it must be a whole number"),
        ("posterior", {"timestep": 5, "previous_timestep": 5}, "s is 5; it must be a whole number from 0 to 4."),
        ("equations", {"language": "fr"}, "Language is 'fr'; it must be one of en, zh."),
    ],
)
def test_a_refusal_is_one_sentence(client, name, given, message):
    with pytest.raises(AppError) as caught:
        client.predict(**given, api_name=f"/{name}")
    assert str(caught.value).startswith(message)


def anything(source: random.Random, depth: int = 0) -> object:
    """A value of any type of JSON, the likely ones and the worst."""
    simple = [
        None, True, False, 0, 1, -1, 7.5, 10**30, -(10**30), 1e308, "", "any", "one", "ddim", "x" * 2000, "\0", "../../etc/passwd",
        "<script>alert(1)</script>", "\ud800", {"path": "/etc/passwd"}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "http://127.0.0.1:1/a", "meta": {"_type": "gradio.FileData"}}, {"__type__": "update", "value": 3},
    ]  # fmt: skip
    if depth < 3 and source.random() < 0.2:
        items = [anything(source, depth + 1) for _ in range(source.randrange(4))]
        return items if source.random() < 0.5 else {str(i): item for i, item in enumerate(items)}
    return source.choice(simple)


def check_answer(status: int, said: str, server: SpaceServer) -> None:
    assert status < 500, said
    for secret in ("Traceback", "root:x:", str(server.log.parent / "model"), "site-packages"):
        assert secret not in said


def test_random_values_for_every_endpoint_are_answered(server, client):
    source = random.Random(8)
    for name in ENDPOINTS:
        for _ in range(12):
            data = [anything(source) for _ in range(source.randrange(11))]
            if name in ("generate", "trajectory", "interpolate"):
                data[:2] = [source.choice(["nine", None, 5]), anything(source)]  # or it draws, and takes its time
            check_answer(*call(server, name, data), server)
    serves(server, client)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b'{"data": 5}', b'{"data": [NaN, Infinity]}', b'{"data":' + b"[" * 5000 + b"]" * 5000 + b"}",
     b'{"data": ["' + b"x" * 2**21 + b'"]}', b'{"data": [' + b"9" * 5000 + b"]}", b"\xff\xfe"],
    ids=lambda content: f"{content[:12]} of {len(content)}",
)  # fmt: skip
def test_a_body_that_is_none(server, content):
    for route in ("call/generate", "queue/join", "run/predict", "mcp/"):
        answer = httpx.post(f"{server.url}gradio_api/{route}", content=content, headers=JSON, timeout=60)
        check_answer(answer.status_code, answer.text, server)
    assert server.process.poll() is None


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "{folder}/secret.txt", "{folder}/gradio/../secret.txt", "{folder}/gradio/%2e%2e/secret.txt",
     "{folder}/model/model_index.json", "/proc/self/environ", "../../../../etc/passwd", "http://127.0.0.1:1/", "~/.bashrc"],
)  # fmt: skip
def test_no_file_of_the_host_is_given(server, path):
    folder = server.log.parent
    answer = httpx.get(f"{server.url}gradio_api/file={path.format(folder=folder)}")
    assert answer.status_code in (400, 403, 404)
    assert "nobody may read this" not in answer.text
    meta = {"path": path.format(folder=folder), "meta": {"_type": "gradio.FileData"}}
    for upload in (meta, {"path": meta["path"]}, meta["path"]):
        status, said = call(server, "forward", [upload, 5, 0, None])
        assert status == 200
        assert re.search(r"is no upload|is no longer kept|cannot be read", said), said


def test_an_upload_that_is_too_large_is_refused(server, client):
    answer = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("a.png", b"\0" * (9 * 2**20))}, timeout=60)
    assert answer.status_code in (400, 413)
    serves(server, client)


def test_a_broken_upload_is_refused_and_the_log_has_no_text_of_the_visitor(server, client, tmp_path):
    (tmp_path / "a_visitors_name.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(AppError, match="The image cannot be read"):
        client.predict(image=handle_file(tmp_path / "a_visitors_name.png"), timestep=3, api_name="/forward")
    with pytest.raises(AppError, match="Class is "):
        client.predict(class_name="my private words", api_name="/generate")
    lines = [line for line in server.said.splitlines() if "ddpm_hub.requests" in line]
    assert any(" generate done model='model' class_labels=1 sampler='ddpm'" in line for line in lines)
    assert not [
        line for line in lines if re.search(r"private words|visitors_name|\d+\.\d+\.\d+\.\d+|passwd|<script", line)
    ]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("tools/call", {"name": "my private words"}), ("tools/call", {"name": 5, "arguments": "my private words"}), ("my private words", {})],
)  # fmt: skip
def test_what_agents_send_is_not_in_the_log(server, method, arguments):
    asked = {"jsonrpc": "2.0", "id": 1, "method": method, "params": arguments}
    headers = JSON | {"Accept": "application/json, text/event-stream"}
    answer = httpx.post(f"{server.url}gradio_api/mcp/", content=json.dumps(asked), headers=headers, timeout=60)
    assert answer.status_code == 200
    assert "private words" not in server.said
    assert re.search(r" a message of an agent: \w+, \w+\.py:\d+$", server.said, flags=re.MULTILINE)


def test_nothing_of_all_this_was_unexpected(server):
    server.assert_no_traceback()


def test_who_comes_when_many_wait_is_told_so(server):
    answers = [
        httpx.post(
            f"{server.url}gradio_api/call/generate", json={"data": ["any", 16, 0, None, "ddpm", 1000, None]}, timeout=60
        )
        for _ in range(80)
    ]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert {answer.json()["detail"] for answer in answers if answer.status_code == 503} == {BUSY}
    assert call(server, "schedule", ["linear", 1000, 1e-4, 0.02])[0] == 503  # the queue is one for all
    assert httpx.get(server.url).status_code == 200  # the page itself comes
