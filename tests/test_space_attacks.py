"""The demo under attack: values that nobody should send, at once, in masses, and with too little memory or no disk."""

import asyncio
import base64
import json
import math
import random
import re
import resource
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import served_models
from answers import BUSY, MEANINGLESS
from conftest import make_pipeline
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from guard import LARGEST_MESSAGE, LARGEST_TOOL_CALLS, TOO_LARGE, Guard
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from space_server import SpaceServer

META = {"_type": "gradio.FileData"}
UNKNOWN = f"{MEANINGLESS.en} {MEANINGLESS.zh}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    for name in ("model", "broken"):
        make_pipeline().save_pretrained(folder / name)
    weights = folder / "broken" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with SpaceServer([folder / name for name in ("model", "broken", "missing")], folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(path)
    return path


def pixels(paths: list[str]) -> np.ndarray:
    found = []
    for path in paths:
        with Image.open(path) as image:
            found.append(np.asarray(image, dtype=int))
    return np.stack(found)


def own_pixels(seed: int, **settings) -> np.ndarray:
    images = make_pipeline()(seed=seed, **settings).images
    return np.stack([np.asarray(image, dtype=int) for image in images])


def draws_rightly(client: Client) -> None:
    seed = random.randrange(2**32)  # or it would be a picture that is kept
    images, _ = client.predict(class_name="one", count=1, seed=seed, num_steps=4, api_name="/generate")
    # Rounding depends on how many cores take part: by less than one level.
    np.testing.assert_allclose(pixels(images), own_pixels(seed, class_labels=1, num_inference_steps=4), atol=1)


def upload(http: httpx.Client, *files: bytes) -> httpx.Response:
    return http.post("gradio_api/upload", files=[("files", (f"{i}.png", file)) for i, file in enumerate(files)])


# --- Several at once ---


def test_visitors_who_ask_at_once_get_what_each_would_get_alone(client):
    asked = [
        {"class_name": "one", "count": 2, "seed": 5, "sampler": "ddpm", "num_steps": 30, "guidance": 1},
        {"class_name": "two", "count": 1, "seed": 6, "sampler": "ddim", "num_steps": 20, "guidance": 3},
        {"class_name": "any", "count": 3, "seed": 7, "sampler": "dpm++", "num_steps": 10, "guidance": 1},
        {"class_name": "zero", "count": 1, "seed": 8, "sampler": "unipc", "num_steps": 15, "guidance": 2},
    ]
    jobs = [client.submit(**one, api_name="/generate") for one in asked]
    for one, job in zip(asked, jobs, strict=True):
        images, _ = job.result(60)
        label = {"one": 1, "two": 2, "any": None, "zero": 0}[one["class_name"]]
        settings = {"sampler": one["sampler"], "num_inference_steps": one["num_steps"], "batch_size": one["count"]}
        expected = own_pixels(one["seed"], class_labels=label, guidance_scale=one["guidance"], **settings)
        np.testing.assert_allclose(pixels(images), expected, atol=1)


def test_a_model_that_does_not_load_is_said_and_hides_no_other(client):
    model, broken, missing = client.predict(api_name="/models")
    assert model["classes"] == ["any", "zero", "one", "two"]
    damaged = "The model broken is damaged: run `make train` again, or copy its folder whole."
    assert broken == {"title": "broken", "problem": damaged}
    assert missing["problem"].startswith("No trained model missing: ")
    with pytest.raises(AppError) as caught:
        client.predict(model="broken", api_name="/generate")
    assert str(caught.value) == damaged
    draws_rightly(client)


def test_calls_leave_nothing_in_memory(server, http):
    def calls(count: int) -> int:
        for _ in range(count):
            event = http.post("gradio_api/call/models", json={"data": []}).json()["event_id"]
            assert "event: complete" in http.get(f"gradio_api/call/models/{event}").text
        return psutil.Process(server.process.pid).memory_info().rss

    # What Gradio keeps of a session is 0.4 MB: 40 MB in all. 8 MB is a fifth of it, and memory comes in pieces.
    assert -calls(30) + calls(100) < 8 * 2**20


def test_nobody_waits_for_a_model_that_somebody_else_asks_for(server, monkeypatch):
    name = str(server.log.parent / "model")
    monkeypatch.setenv("DDPM_HUB_MODEL", name)
    loaded = served_models.load(name)
    with ThreadPoolExecutor(1) as visitor, served_models._loading:
        assert visitor.submit(served_models.load, name).result(30) is loaded


def test_few_tools_are_called_at_once_since_each_waits_in_a_thread():
    async def use() -> tuple[list, httpx.Response, list]:
        arrived, end = asyncio.Semaphore(0), asyncio.Event()

        async def application(scope, receive, send):
            arrived.release()
            await end.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

        transport = httpx.ASGITransport(Guard(application))
        async with httpx.AsyncClient(transport=transport, base_url="http://space") as client:
            calls = [asyncio.create_task(client.post("/gradio_api/mcp/")) for _ in range(LARGEST_TOOL_CALLS)]
            for _ in calls:
                await arrived.acquire()
            refused = await asyncio.wait_for(client.post("/gradio_api/mcp/"), 30)
            end.set()
            others = [(await call).status_code for call in calls]
            return others, refused, (await client.post("/gradio_api/mcp/")).status_code

    others, refused, later = asyncio.run(use())
    assert (refused.status_code, refused.json()) == (503, {"detail": BUSY})
    assert others == [200] * LARGEST_TOOL_CALLS
    assert later == 200


# --- Files ---


def test_tools_take_uploads_by_address_or_inside_and_no_other_file(server, http, picture):
    content = picture.read_bytes()
    (path,) = upload(http, content).json()
    good = [
        f"{server.url}gradio_api/file={path}",
        f"https://elsewhere.example/gradio_api/file={path}",  # as a proxy in front of it calls it
        f"data:image/png;base64,{base64.b64encode(content).decode()}",
    ]
    bad = [
        f"{server.url}config",
        f"{server.url}gradio_api/file=/etc/passwd",
        f"{server.url}gradio_api/file={path}/../../../log.txt",
        f"{server.url}gradio_api/file={server.temporary}/%2e%2e/log.txt",
        "http://169.254.169.254/latest",
    ]

    async def use() -> list:
        async with (
            streamable_http_client(f"{server.url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return [await session.call_tool("forward", {"image": image, "timestep": 9}) for image in good + bad]

    answers = asyncio.run(use())
    for answer in answers[: len(good)]:
        assert "sqrt_alpha_bar" in answer.content[0].text
    for answer in answers[len(good) :]:
        assert answer.content[0].text == "The file is no upload: upload it here first."


@pytest.mark.parametrize(
    "route",
    ["file=http://example.com/", "file=HTTPS://example.com/", "file/https://example.com/", "proxy=http://127.0.0.1/", "deep_link?session_hash=x",
     "custom_component/a/client/b/c", "component_server/", "dev/reload", "mcp/sse"],
)  # fmt: skip
def test_what_the_page_does_not_use_is_closed(http, route):
    assert http.get(f"gradio_api/{route}").status_code == 404


def test_more_is_closed(http):
    assert http.post("gradio_api/process_recording", files={"video": b"x"}).status_code == 404
    assert http.get("monitoring/summary").status_code == 403
    # Whoever could do without the queue could ask for any number of drawings at once.
    assert http.post("gradio_api/run/generate", json={"data": ["any"]}).status_code == 404


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("route", "limit"), [("queue/join", LARGEST_MESSAGE), ("upload", 12 * 2**20)])
def test_a_request_that_is_too_large_to_hold(http, route, limit, chunked):
    if route == "upload":
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        part = head + b"x" * (limit // 2) + b"\r\n"
        content, form = part + part + b"--x--\r\n", "multipart/form-data; boundary=x"
    else:
        content, form = json.dumps({"data": ["x" * limit], "fn_index": 0, "session_hash": "x"}).encode(), None
    headers = {"Content-Type": form or "application/json"}
    answer = http.post(f"gradio_api/{route}", content=iter([content]) if chunked else content, headers=headers)
    assert (answer.status_code, answer.json()) == (413, {"detail": TOO_LARGE})


# --- Values ---

NUMBERS = [0, 1, 2, 3, 7, -1, 17, 64, 5000, 10**30, -(10**30), 1.5, 0.5, 0.02, -0.0, 1e308, 5e-324, math.nan, math.inf]
NAMES = ["any", "one", "model", "broken", "missing", "ddpm", "ddim", "unipc", "linear", "sigmoid", "squaredcos_cap_v2",
         "en", "zh", "", "\0", "\ud800", "<script>alert(1)</script>", "x" * 10_000]  # fmt: skip
ANYTHING = [None, True, 5, "text", [], {}, [[[]]], {"path": "/etc/passwd"}, {"path": "/etc/passwd", "meta": META},
            {"path": "http://127.0.0.1:1/a", "meta": META}, {"__type__": "update", "value": 3}]  # fmt: skip


def values(http: httpx.Client, picture: Path) -> dict[str, list]:
    """What each kind of component and of argument is sent: what it gives itself, and what gets as far as possible."""
    (path,) = upload(http, picture.read_bytes()).json()
    file = {"path": path, "meta": META}
    return {
        "slider": [*NUMBERS, None],
        "number": [*NUMBERS, None],
        "integer": [*NUMBERS, None],
        "dropdown": [*NAMES, None],
        "string": [*NAMES, None],
        "radio": ["en", "zh", "paper", "slip", "x"],
        "checkbox": [True, False],
        "boolean": [True, False, 1],
        "html": ["1" * 64, "01" * 32, "", "1" * 10_000, '<p class="under-way">'],
        "textbox": ["seed=5&sampler=ddim&steps=3", "seed=x&steps=1e9&class=%00&guidance=nan", "&" * 5000],
        "dataset": [0, 1, 5, 100, -1],
        "image": [file, {"path": path}, {"path": f"{path}x"}, {"path": "/etc/passwd"}, {"path": None}, None],
        "state": [None],
    }


def kinds(http: httpx.Client) -> dict[int, tuple[str, list[str]]]:
    """Of every event its name and what kinds of values it takes."""
    config, named = http.get("config").json(), http.get("gradio_api/info").json()["named_endpoints"]
    components = {component["id"]: component["type"] for component in config["components"]}
    found = {}
    for event in config["dependencies"]:
        if described := named.get(f"/{event['api_name']}"):
            types = [json.dumps(parameter["type"]) for parameter in described["parameters"]]
            taken = [re.search(r"image|FileData|integer|number|boolean|string", text).group() for text in types]
            taken = ["image" if "meta" in text else kind for text, kind in zip(types, taken, strict=True)]
        else:
            taken = [components[number] for number in event["inputs"]]
        found[event["id"]] = event["api_name"], taken
    return found


def happen(http: httpx.Client, event: int, data: list, session: str) -> str | None:
    """What an event says when it is refused, through the queue."""
    body = json.dumps({"fn_index": event, "data": data, "session_hash": session})
    begun = http.post("gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
    assert begun.status_code == 200, begun.text
    with http.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: ") and (message := json.loads(line[6:]))["msg"] == "process_completed":
                return None if message["success"] else message["output"]["error"]
    raise AssertionError(f"Event {event} has no end for {data}.")


def test_every_event_answers_whatever_it_is_sent(server, client, http, picture):
    source, likely, session = random.Random(8), values(http, picture), ""
    heard, served = [], 0
    events = list(kinds(http).items())
    for turn in range(700):
        event, (name, taken) = events[turn % len(events)]
        session = uuid.uuid4().hex if turn % 50 == 0 else session
        wild = source.choice([0, 0, 0.2])
        data = [source.choice(ANYTHING if source.random() < wild else likely[kind]) for kind in taken]
        if taken and taken[0] == "dropdown" and source.random() < 0.8:
            data[0] = "model"
        data = data[: source.randrange(len(data) + 1)] if source.random() < 0.05 else data
        if source.random() < 0.5:
            said = happen(http, event, data, session)
        else:
            body = json.dumps({"fn_index": event, "data": data, "session_hash": session})
            answer = http.post(f"gradio_api/run/{name}", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400, 404), answer.text
            said = answer.json().get("error") or answer.json().get("detail")
        if said is None:
            served += 1
        else:
            assert re.search(r"[.:](</span>.*)?$", said), (name, data, said)
            assert len(said) < 500, (name, data)
            heard.append(said)
    assert served > 150
    assert len(set(heard)) > 60
    assert not [said for said in heard if "The server failed" in said]
    server.assert_no_traceback()
    draws_rightly(client)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("queue/join", {"fn_index": 10**9, "data": [], "session_hash": "x"}),
        ("queue/join", {"fn_index": -1, "data": [], "session_hash": "x"}),
        ("run/predict", {"fn_index": 10**9, "data": []}),
        ("run/nothing", {"data": []}),
        ("call/nothing", {"data": []}),
        ("call/v2/nothing", {}),
        ("call/v2/generate", {"nothing": 1}),
        ("cancel", {}),
        ("queue/join", {"data": 5, "session_hash": "x"}),
    ],
)
def test_a_request_that_makes_no_sense(http, route, body):
    answer = http.post(f"gradio_api/{route}", json=body)
    assert answer.status_code in (400, 422)
    assert answer.json() == {"detail": UNKNOWN}


def test_a_session_that_no_text_can_hold_disturbs_no_other(server, http, client):
    body = b'{"data": [], "fn_index": 0, "session_hash": "\\ud800"}'
    http.post("gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
    draws_rightly(client)
    server.assert_no_traceback()


def test_the_log_says_what_was_done_and_nothing_of_the_visitors(server):
    lines = [line.split(" ddpm_hub.requests ")[1] for line in server.said.splitlines() if "ddpm_hub.requests" in line]
    assert re.search(r"generate done model='model' class_labels=1 .* seconds=\d", "\n".join(lines))
    assert any(re.search(r"refused: \w+ in \w+, \w+\.py:\d+$", line) for line in lines)
    for line in lines:
        assert not re.search(r"passwd|<script|127\.0\.0\.1|x{20}|ud800|\.png|data:", line), line


# --- Too little memory, no disk ---


@contextmanager
def little_memory(server: SpaceServer, spare: int):
    """The server can take `spare` more bytes."""
    unlimited = resource.RLIM_INFINITY
    size = psutil.Process(server.process.pid).memory_info().vms
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (size + spare, unlimited))
    yield
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (unlimited, unlimited))


def test_too_little_memory_is_said_and_does_not_last(server, client, tmp_path):
    Image.new("I;16", (5000, 4000)).save(tmp_path / "large.png")  # 40 MB, and 80 MB more while it is made 8 bits
    asked = {"image": handle_file(tmp_path / "large.png"), "timestep": 9, "api_name": "/forward"}
    with (
        little_memory(server, 30 * 2**20),
        pytest.raises(AppError, match=r"^The server has too little memory for this: ask for less\.$"),
    ):
        client.predict(**asked)
    assert "MemoryError" in server.said
    draws_rightly(client)
    assert client.predict(**asked)


def test_a_disk_that_fails_is_said_and_does_not_last(server, client, http):
    kept = server.temporary.rename(server.temporary.with_name("kept"))
    server.temporary.touch()
    with pytest.raises(AppError, match=r"^The server failed to do this; its log says why\.$"):
        client.predict(num_steps=2, api_name="/generate")
    answer = upload(http, b"anything")
    server.temporary.unlink()
    kept.rename(server.temporary)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("The server failed to do this; its log says why.")
    assert "FileExistsError" in server.said
    draws_rightly(client)
    assert upload(http, b"anything").status_code == 200
