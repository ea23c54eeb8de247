"""Text that comes from files, made harmless for Markdown, and numbers and tables as a model card has them."""

import html
import json
import re

LARGEST_LISTING = 20  # of class names


def plain(text: str) -> str:
    """Text on one line that Markdown, its tables, HTML and formulas take for nothing but text."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    escaped = re.sub(r"[`*_\[\]#~{}]", r"\\\g<0>", html.escape(words.replace("\\", "\0"), quote=False))
    return escaped.replace("\0", "&#92;").replace("|", "&#124;").replace("$", "&#36;")


def code(text: str) -> str:
    """A name in the typeface of code; as [`plain`] text if anything else than names are made of is in it."""
    return f"`{text}`" if re.fullmatch(r"[\w.+-]+", text, re.ASCII) else plain(text)


def number(value: float) -> str:
    """An integer with its thousands apart; at most six digits of anything else."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def machine(facts: dict) -> str:
    """What a machine is called, how much of it was used, and by which torch."""
    counts = ((facts.get(key), key.removesuffix("s")) for key in ("threads", "devices"))
    parts = [plain(facts["name"])] if "name" in facts else []
    parts += [f"{count} {unit}{'s' if count > 1 else ''}" for count, unit in counts if count]
    return ", ".join(parts + ([f"torch {plain(facts['torch'])}"] if "torch" in facts else []))


def python_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def listing(names: list[str]) -> str:
    listed = ", ".join(plain(name) for name in names[:LARGEST_LISTING])
    return listed + (f" and {len(names) - LARGEST_LISTING:,} more" if len(names) > LARGEST_LISTING else "")


def table(columns: dict[str, list[str]]) -> str:
    """A Markdown table of the columns that hold anything; no table without rows."""
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [filled.keys(), ["---"] * len(filled), *zip(*filled.values(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if filled else ""
