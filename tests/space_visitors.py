"""Visitors of the demo who send whatever they like, many at once, and what each of them hears."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

AT_ONCE = 12
PATIENCE = 120  # seconds, after which a request counts as one that has no answer
JSON = {"Content-Type": "application/json"}
TOOL = JSON | {"Accept": "application/json, text/event-stream"}
DONE = "done"


@dataclass(frozen=True)
class Call:
    """A call of an endpoint, or of an event of the page.

    Attributes:
        way (`str`): how: one of [`WAYS`].
        name (`str` or `int`): of the endpoint; of an event of the page its number.
        values (`dict`): the arguments.
        session (`object`): what the caller says that its session is called, where it says so.
    """

    way: str
    name: str | int
    values: dict[str, Any] = field(hash=False)
    session: object = "visitor"


@dataclass(frozen=True)
class Answer:
    """What a visitor hears.

    Attributes:
        status (`int`): of the first answer whose status is not 200, or 200.
        said (`str`): [`DONE`], or what is said in its place.
        text (`str`): everything that was sent, for what must not be in it.
    """

    status: int
    said: str
    text: str

    def wrong(self, secrets: Sequence[str]) -> str | None:
        """What is wrong with it, if anything is: an error is one sentence, and no text holds a secret."""
        if self.status >= 500:
            return f"status {self.status}"
        if found := [secret for secret in ("Traceback", "site-packages", *secrets) if secret in self.text]:
            return f"holds {found}"
        return None if self.said == DONE or is_sentence(self.said) else "no sentence"


def is_sentence(said: str) -> bool:
    """Whether a text is one short line that ends as a sentence does; on the page it is in both languages."""
    return bool(re.fullmatch(r"[^\n]{3,500}[.。]", re.sub(r"<[^>]*>", " ", said).strip()))


async def by_list(client: httpx.AsyncClient, call: Call) -> Answer:
    """The values in their order, as `gradio_client` sends them."""
    return await _two_requests(client, f"call/{call.name}", {"data": list(call.values.values())})


async def by_name(client: httpx.AsyncClient, call: Call) -> Answer:
    """The values with their names."""
    return await _two_requests(client, f"call/v2/{call.name}", call.values)


async def as_tool(client: httpx.AsyncClient, call: Call) -> Answer:
    """As an agent calls it."""
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": call.name, "arguments": call.values}}
    answer = await _post(client, "mcp/", asked, TOOL)
    if "data: " not in answer.text:
        return Answer(answer.status_code, _refusal(answer), answer.text)
    message = json.loads(answer.text.split("data: ", 1)[1].splitlines()[0])
    if "error" in message:  # it was no call: what is said then is the protocol's own phrase
        return Answer(answer.status_code, f"{message['error']['message']}.", answer.text)
    result = message["result"]
    said = " ".join(part["text"] for part in result["content"]) if result["isError"] else DONE
    return Answer(answer.status_code, said, answer.text)


async def as_message(client: httpx.AsyncClient, call: Call) -> Answer:
    """As an agent that does not know how to call: the name is the method's. What it hears is the protocol's own."""
    answer = await _post(client, "mcp/", {"jsonrpc": "2.0", "id": 1, "method": call.name, "params": call.values}, TOOL)
    return Answer(answer.status_code, DONE, answer.text)


async def on_page(client: httpx.AsyncClient, call: Call) -> Answer:
    """As the page does it."""
    body = {"fn_index": call.name, "data": list(call.values.values()), "session_hash": call.session}
    begun = await _post(client, "queue/join", body)
    if begun.status_code != 200:
        return Answer(begun.status_code, _refusal(begun), begun.text)
    text, event = "", begun.json()["event_id"]
    async with client.stream("GET", "gradio_api/queue/data", params={"session_hash": call.session}) as stream:
        async for line in stream.aiter_lines():
            text += f"{line}\n"
            if line.startswith("data: ") and (message := json.loads(line[6:]))["msg"] == "process_completed":
                assert message["event_id"] == event
                said = DONE if message["success"] else str(message["output"].get("error"))
                return Answer(stream.status_code, said, text)
    return Answer(200, "it has no end", text)


WAYS: dict[str, Callable[[httpx.AsyncClient, Call], Awaitable[Answer]]] = {
    "list": by_list,
    "names": by_name,
    "tool": as_tool,
    "message": as_message,
    "page": on_page,
}


async def answer_of(client: httpx.AsyncClient, call: Call) -> Answer:
    """Makes a call, in its way."""
    return await WAYS[call.way](client, call)


def at_once(url: str, asked: Sequence, ask: Callable[[httpx.AsyncClient, Any], Awaitable[Answer]]) -> list[Answer]:
    """What several visitors hear who share the questions among them; the answers are in the order of the questions."""

    async def share() -> list[Answer]:
        answers, left = [None] * len(asked), iter(range(len(asked)))

        async def visit() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False) as client:
                for number in left:
                    try:
                        answers[number] = await ask(client, asked[number])
                    except httpx.TransportError as error:
                        answers[number] = Answer(0, f"no answer: {error!r}", "")

        await asyncio.gather(*(visit() for _ in range(AT_ONCE)))
        return answers

    return asyncio.run(share())


def wrong_ones(asked: Sequence, answers: Sequence[Answer], secrets: Sequence[str]) -> list[str]:
    """What was asked and heard where something is wrong, shortened; none where all is well."""
    return [
        f"{wrong}: {repr(question)[:600]} → {answer.status} {answer.said[:300]!r} {answer.text[:200]!r}"
        for question, answer in zip(asked, answers, strict=True)
        if (wrong := answer.wrong(secrets))
    ]


async def upload(client: httpx.AsyncClient, content: bytes, name: str = "image.png") -> dict | None:
    """A file, as it is given to endpoints once it is uploaded; `None` where it is refused."""
    answer = await client.post("gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code < 500, answer.text
    return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}} if answer.status_code == 200 else None


async def _two_requests(client: httpx.AsyncClient, route: str, body: object) -> Answer:
    begun = await _post(client, route, body)
    if begun.status_code != 200:
        return Answer(begun.status_code, _refusal(begun), begun.text)
    ended = await client.get(f"gradio_api/{route}/{begun.json()['event_id']}")
    event, _, data = ended.text.strip().split("\n\n")[-1].partition("\ndata: ")
    heard = json.loads(data) if ended.status_code == 200 else None
    said = DONE if event == "event: complete" else str(heard["error"] if isinstance(heard, dict) else heard)
    return Answer(ended.status_code, said, ended.text)


async def _post(client: httpx.AsyncClient, route: str, body: object, headers: dict = JSON) -> httpx.Response:
    # Python's own JSON, since httpx refuses NaN and lone surrogates.
    return await client.post(f"gradio_api/{route}", content=json.dumps(body).encode(), headers=headers)


def _refusal(answer: httpx.Response) -> str:
    return str(answer.json().get("detail")) if "json" in answer.headers.get("content-type", "") else answer.text
