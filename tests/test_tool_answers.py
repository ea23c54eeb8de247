"""What agents hear: a real server of MCP's library, whose tools raise what Gradio's do."""

import asyncio
from concurrent.futures import CancelledError

import pytest
from mcp.server.lowlevel import Server
from mcp.types import CallToolRequest, CallToolRequestParams, TextContent, Tool
from tool_answers import LONGEST, LOST, shorten_refusals


def call(*outcomes: Exception | str) -> tuple[bool, str, int]:
    """Whether a tool of these outcomes, one for each call of it, is refused, what is said, and how often it was called."""
    server, left = Server("demo"), list(outcomes)

    @server.list_tools()
    async def tools() -> list[Tool]:
        return [Tool(name="draw", inputSchema={"type": "object"})]

    @server.call_tool()
    async def run(name: str, arguments: dict) -> list[TextContent]:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return [TextContent(type="text", text=outcome)]

    shorten_refusals(server)
    request = CallToolRequest(method="tools/call", params=CallToolRequestParams(name="draw", arguments={}))
    answer = asyncio.run(server.request_handlers[CallToolRequest](request)).root
    return answer.isError, answer.content[0].text, len(outcomes) - len(left)


def test_an_answer_is_left_as_it_is():
    assert call("  two words .") == (False, "  two words .", 1)
    assert call("") == (False, "", 1)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [("Seed is -1...", "Seed is -1."), ("a\n\n  b", "a b."), ("é" * 9999 + "end", "é" * 200 + "…" + "é" * 97 + "end.")],
)
def test_a_refusal_is_one_short_sentence(said, sentence):
    assert call(ValueError(said)) == (True, sentence, 1)
    assert len(sentence) <= LONGEST + 2


def test_a_call_whose_answer_was_lost_is_made_once_more():
    assert call(CancelledError(), "drawn") == (False, "drawn", 2)
    assert call(CancelledError(), ValueError("Seed is -1")) == (True, "Seed is -1.", 2)
    assert call(CancelledError(), CancelledError()) == (True, LOST, 2)
