"""What the Space asks the Hub to install is what the tests ran with, and all that the package needs."""

import re
import tomllib

from conftest import REPOSITORY


def pins(path) -> dict[str, str]:
    lines = (REPOSITORY / path).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith(("#", "-e")))


def test_the_versions_are_those_of_the_constraints():
    pinned = pins("constraints.txt")
    assert {name: pinned[name] for name in pins("space/requirements.txt")} == pins("space/requirements.txt")
    assert f"sdk_version: {pinned['gradio']}\n" in (REPOSITORY / "space" / "README.md").read_text(encoding="utf-8")


def test_everything_the_package_needs_is_there():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.match(r"[A-Za-z0-9_-]+", requirement)[0] for requirement in project["dependencies"]}
    # mcp: the Hub installs Gradio, and not always what its MCP server needs.
    assert needed | {"mcp"} == set(pins("space/requirements.txt"))
