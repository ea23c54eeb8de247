"""What reaches the server at all: requests of a size that it can hold, on the routes that the page uses."""

from answers import BUSY, FAILED, MEANINGLESS, NO_MEMORY, is_about_memory, log, place
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from visitor_files import LARGEST_BYTES

LARGEST_MESSAGE = 2**20
LARGEST_TOOL_CALLS = 24  # each holds one of the 40 threads that answer pages as well

# What Gradio offers and this page does not use: it would fetch from other servers, fill the disk, write to the log or, as
# the older way to call tools, hold threads uncounted.
CLOSED = tuple(
    f"/gradio_api/{route}"
    for route in (
        "file=http",
        "file/",  # an older name of the same, under which it fetches as well
        "proxy=",
        "deep_link",
        "process_recording",
        "custom_component",
        "component_server",
        "dev",
        "mcp/sse",
    )
)
UPLOADS, TOOLS = "/gradio_api/upload", "/gradio_api/mcp"

TOO_LARGE = "The request is too large. 请求过大。"


class Guard:
    """Around the whole server, as ASGI: requests are of a size that it can hold, and what its own routes stumble on is said in one
    sentence. No answer has a status of 500 or more, except 503 where too many visitors are waiting."""

    def __init__(self, app):
        self._app, self._tool_calls = app, 0

    async def __call__(self, scope, receive, send) -> None:
        """Answers a request."""
        path = scope["path"].lower() if scope["type"] == "http" else ""
        if not path:
            await self._app(scope, receive, send)
        elif path.startswith(CLOSED):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
        elif path.startswith(TOOLS) and scope["method"] == "POST":
            if self._tool_calls >= LARGEST_TOOL_CALLS:
                await JSONResponse({"detail": BUSY}, 503)(scope, receive, send)
                return
            self._tool_calls += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self._tool_calls -= 1
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope, receive, send) -> None:
        # An upload is sent as a form, or inside of a message to a tool, where it takes a third more.
        left = LARGEST_BYTES * 3 // 2 if scope["path"].startswith((UPLOADS, TOOLS)) else LARGEST_MESSAGE
        begun = False

        async def receive_some() -> dict:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, TOO_LARGE)
            return message

        async def send_mended(message: dict) -> None:
            nonlocal begun
            begun = True
            if message.get("status", 200) >= 500 and message["status"] != 503:
                message["status"] = 400
            await send(message)

        try:
            await self._app(scope, receive_some, send_mended)
        except Exception as error:  # Gradio's routes raise whatever they stumble on
            route = getattr(scope.get("route"), "path", "a request")
            log.warning("%s failed: %s", route, place(error))
            if begun:
                await send({"type": "http.response.body"})
            else:
                known = NO_MEMORY if is_about_memory(error) else FAILED if isinstance(error, OSError) else MEANINGLESS
                await JSONResponse({"detail": f"{known.en} {known.zh}"}, 400)(scope, receive, send)
