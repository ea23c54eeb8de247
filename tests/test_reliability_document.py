"""docs/RELIABILITY.md has what the campaigns say."""

import ast
import re
from collections import Counter

from conftest import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")


def rows() -> list[tuple[str, str]]:
    """Of the table of what held: the area, and what was tried."""
    table = DOCUMENT.partition("| | what was tried |")[2].partition("\n\n")[0]
    return re.findall(r"^\| ([^|]+) \| ([^|]+) \| [\d,]+ \| [^|]+ \|$", table, flags=re.MULTILINE)


def said_by_campaigns() -> list[re.Pattern]:
    """What each campaign says that it tries; what it computes may be anything."""
    found = []
    for path in sorted((REPOSITORY / "tests").glob("test_stress_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "held":
                tried = node.args[1]
                parts = tried.values if isinstance(tried, ast.JoinedStr) else [tried]
                found.append(
                    re.compile("".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in parts))
                )
    return found


def test_every_campaign_has_its_row():
    tried = [what for _, what in rows()]
    missing = [one.pattern for one in said_by_campaigns() if not any(one.fullmatch(what) for what in tried)]
    assert missing == []


def test_every_area_is_there():
    assert Counter(area for area, _ in rows()).keys() == {
        "Training",
        "Hub",
        "Loading",
        "Scheduler and pipeline",
        "Space",
    }
