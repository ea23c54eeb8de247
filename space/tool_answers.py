"""What agents hear that call the endpoints as MCP tools, where it is not we who refuse, and what the log says of them."""

import logging
from collections.abc import Awaitable, Callable

from mcp.server.lowlevel import Server
from mcp.types import CallToolRequest, ServerResult

LONGEST = 300  # characters
KEPT_END = 100  # of them at the end, which says what is wrong
LOST = "The answer was lost within the server: ask again."

log = logging.getLogger("ddpm_hub.requests")


def shorten_refusals(server: Server) -> None:
    """Makes one short sentence of every refusal: MCP's library checks the arguments first, and quotes them whole, of any size.

    Gradio asks itself for a tool's answer over HTTP, and all agents share that stream. It may be closed under a call that has
    just begun, which then is cancelled without a word: such a call is made once more, since every endpoint gives the same again.
    """
    server.request_handlers[CallToolRequest] = _shortened(server.request_handlers[CallToolRequest])


class WithoutMessages(logging.Filter):
    """Of what MCP's library has to say only where it said it: it quotes whole messages of visitors, in part as the root logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.name != "root" and not record.name.startswith("mcp."):
            return True
        record.msg = f"a message of an agent: {record.funcName}, {record.filename}:{record.lineno}"
        record.args, record.exc_info = (), None
        return record.levelno >= logging.WARNING


def _shortened(handler: Callable[[CallToolRequest], Awaitable[ServerResult]]) -> Callable:
    async def handle(request: CallToolRequest) -> ServerResult:
        answer = await handler(request)
        if _is_lost(answer):
            log.info("a tool is asked again: its answer was lost")
            answer = await handler(request)
        if answer.root.isError:
            for part in answer.root.content:
                part.text = _sentence(part.text)
        return answer

    return handle


def _is_lost(answer: ServerResult) -> bool:
    return answer.root.isError and not any(part.text.strip() for part in answer.root.content)


def _sentence(said: str) -> str:
    words = " ".join(said.rstrip(".").split())
    if not words:
        return LOST
    return f"{words if len(words) < LONGEST else f'{words[: LONGEST - KEPT_END]}…{words[-KEPT_END:]}'}."
