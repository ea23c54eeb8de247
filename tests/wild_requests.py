"""Requests that nobody should send, as HTTP: to every route, with any method, broken bodies, and paths of other people's files."""

import asyncio
import contextlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
from space_visitors import DONE, Answer
from wild_values import PLACES, TEXTS, wild_value

METHODS = (
    "GET",
    "GET",
    "GET",
    "POST",
    "POST",
    "POST",
    "HEAD",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "PROPFIND",
    "X",
)
FORM = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
KINDS = ("application/json", "application/json; charset=utf-16", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain",
         "application/x-www-form-urlencoded", "image/png", "\\", "")  # fmt: skip
FILE_NAMES = (b"a.png", b"../../../a.png", b"/etc/cron.d/a", b"..\\..\\a", b"a" * 300 + b".png", b"..", b".", b"", b"a%00b.png",
              b"\xff\xfe.png", b"con", b"a/../../b.png", b"~/.bashrc", b"a.png/../../../log.txt", b"%2e%2e%2fa.png")  # fmt: skip
HEADERS = {
    "Range": (
        "bytes=0-5",
        "bytes=-1",
        "bytes=9-1",
        "bytes=x-y",
        "bytes=0-1,2-3,-1",
        "bytes=1-99999999999999999999",
        "bytes=1-2-3",
    ),
    "Accept-Encoding": ("br", "gzip, br", "x" * 1000, "identity;q=0, *;q=0"),
    "Accept-Language": ("zh", "\\", "x" * 2000),
    "Host": ("elsewhere.example", "a b", "[::1", ""),
    "Origin": ("null", "http://elsewhere.example"),
    "Cookie": ("access-token=1; access-token-unsecure=" + "x" * 2000, ";;;="),
    "X-Forwarded-Host": ("elsewhere.example/../..", "a,b", "\\"),
    "X-Forwarded-Proto": ("javascript", "https,http"),
    "X-Forwarded-For": ("127.0.0.1", "x" * 2000),
    "X-Gradio-User": ("app", "\\"),
    "X-Gradio-Server": ("http://127.0.0.1:1/",),
    "Authorization": ("Bearer x", "Basic ####", "Digest"),
    "Content-Encoding": ("gzip", "br"),
    "Transfer-Encoding": ("chunked",),
    "If-None-Match": ("*",),
    "Referer": ("http://127.0.0.1:1/%00",),
}


@dataclass(frozen=True)
class Request:
    """A request, to be sent as it is."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


def wild_request(chance: random.Random, routes: list[str]) -> Request:
    """A request to one of the routes, whose parts in braces are anything."""
    path = re.sub(r"\{[^}]*\}", lambda _: _wild_part(chance), chance.choice(routes))
    if chance.random() < 0.4:
        names = (
            "session_hash",
            "upload_id",
            "deep_link",
            "page",
            "__theme",
            "fn_index",
            "event_id",
            "lang",
            "seed",
            "view",
            "__sign",
        )
        path += "?" + "&".join(f"{name}={_wild_part(chance)}" for name in chance.sample(names, 2))
    headers = [
        (name, chance.choice(HEADERS[name])) for name in chance.sample(list(HEADERS), chance.choice([0, 0, 1, 2, 4]))
    ]
    return Request(chance.choice(METHODS), path, (("Content-Type", chance.choice(KINDS)), *headers), _wild_body(chance))


def file_targets(folder: Path, other_files: list[Path]) -> Iterator[str]:
    """Ways to ask for files that are nobody's business, by every route that gives files."""
    for file in other_files:
        up = "../" * 12 + str(file)[1:]
        uploads = f"{folder}/gradio/../../../../../../..{file}"
        spelled = {
            str(file), f"/{file}", f"{file}/", f"{file}%00.png", f"{file}%20", f"file://{file}", f"{file}?x", f".{file}",
            quote(str(file), safe=""), quote(quote(str(file), safe=""), safe=""), up, quote(up, safe=""), up.replace(".", "%2e"),
            up.replace("../", "..%5c"), up.replace("../", "....//"), up.replace(".", "%252e"), up.replace("../", "%c0%ae%c0%ae/"),
            uploads, uploads.replace("..", "%2e%2e"), uploads.replace("..", "%2E."), f"/proc/self/root{file}", f"/proc/self/cwd/{up}",
            f"space/example_images/{up}", f"{folder}/gradio/./../{file.name}", f"{file}:$DATA", f"~{file}", f"\\\\?\\{file}".replace("\\", "%5c"),
        }  # fmt: skip
        for path in sorted(spelled):
            for route in ("gradio_api/file=", "gradio_api/file/", "gradio_api/proxy=", "static/", "assets/", "svelte/"):
                yield f"/{route}{path}"
            yield f"/gradio_api/custom_component/image/client/{path}"
            yield f"/gradio_api/stream/{path}/playlist-file"
            yield f"/pwa_icon/{path}"
            yield f"/{path}"


async def answer_of_request(client: httpx.AsyncClient, request: Request) -> Answer:
    """What is answered; of an answer without an end the beginning."""
    raw = httpx.Request(request.method, client.base_url, headers=dict(request.headers), content=request.body)
    raw.extensions = {"target": request.target.encode(), "timeout": client.timeout.as_dict()}
    content = b""
    try:
        answer = await client.send(raw, stream=True)
    except httpx.RemoteProtocolError:  # it hung up, which is an answer to what is no HTTP
        return Answer(0, DONE, "")
    try:
        async for part in answer.aiter_raw():
            content += part
            if "event-stream" in answer.headers.get("content-type", ""):
                break
    finally:
        await answer.aclose()
    text = content.decode(errors="replace")
    return Answer(answer.status_code, DONE if answer.status_code < 400 else _refusal(text), text)


async def raw_answer(port: int, content: bytes) -> Answer:
    """What is answered to bytes that need not be HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = b""
    with contextlib.suppress(OSError):  # it hung up before it had everything, which ENOTCONN says, too
        writer.write(content)
        writer.write_eof()
        while part := await reader.read(2**16):
            answered += part
    writer.close()
    text = answered.decode(errors="replace")
    status = re.match(r"HTTP/1.1 (\d+)", text)
    return Answer(int(status[1]) if status else 0, DONE, text)


NO_HTTP = [
    b"\r\n\r\n",
    b"\0" * 5000,
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",  # the beginning of TLS
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\xff\xfe: \0\r\n\r\n",
    b"GET /\xff\xfe/\xc3 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //etc/passwd HTTP/1.0\r\n\r\n",
    b"GET /../../../etc/passwd HTTP/1.0\r\n\r\n",
    b"GET /static/../../../../../../etc/passwd HTTP/1.0\r\n\r\n",
    b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n",
    b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n{",
    b"GET /gradio_api/heartbeat/a HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
]


def _wild_part(chance: random.Random) -> str:
    words = (
        "generate",
        "forward",
        "models",
        "0",
        "1",
        "a",
        "ts",
        "server",
        "..%2f..",
        "%00",
        "%ff",
        "%2e%2e",
        "-1",
        "9" * 30,
    )
    return (
        chance.choice(words)
        if chance.random() < 0.5
        else quote(chance.choice(PLACES + TEXTS[:20]).encode(errors="replace"))[:3000]
    )


def _wild_body(chance: random.Random) -> bytes:
    kind = chance.randrange(7)
    if kind == 0:
        return b""
    if kind == 1:
        return chance.randbytes(chance.choice([1, 30, 3000]))
    if kind == 2:
        return chance.choice(
            [b"{", b"[", b"[]", b"5", b"null", b'"', b"\xff\xfe{", b"[" * 90_000, b"9" * 90_000, b'{"data":NaN}']
        )
    if kind == 3:
        parts = [
            FORM
            % (
                chance.choice([b"files", b"files", b"other", b""]),
                chance.choice(FILE_NAMES),
                chance.randbytes(chance.randrange(90)),
            )
            for _ in range(chance.choice([1, 2, 20, 1100]))
        ]
        return b"".join(parts) + chance.choice([b"--x--\r\n", b"--x--", b"", b"--y--\r\n"])
    body = {
        "data": wild_value(chance),
        "session_hash": wild_value(chance),
        "fn_index": chance.choice([0, 5, 20, -1, "x"]),
    }
    if kind == 4:
        body |= {"event_id": wild_value(chance), "event_data": wild_value(chance), "trigger_id": wild_value(chance)}
    if kind == 5:
        body = {"jsonrpc": "2.0", "id": wild_value(chance), "method": "tools/call", "params": wild_value(chance)}
    content = json.dumps(body).encode()
    return content[: chance.randrange(len(content))] if kind == 6 else content


def _refusal(text: str) -> str:
    """What a refusal says; HTTP's own phrases, as Not Found, have no full stop."""
    try:
        said = json.loads(text)
    except ValueError:
        return f"{text.strip().rstrip('.')}." if text.strip() else DONE
    said = said.get("detail") or said.get("error") if isinstance(said, dict) else said
    said = said.get("message") if isinstance(said, dict) else said
    return f"{said.rstrip('.')}." if isinstance(said, str) else repr(said)
