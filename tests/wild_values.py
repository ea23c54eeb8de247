"""Values that nobody should send, drawn at random."""

import math
import random

META = {"_type": "gradio.FileData"}
PRIVATE = "a visitor's own words"  # which no log may hold
NUMBERS = (0, 1, 2, 3, 7, 17, 21, -1, 5000, 2**31, 2**53 + 1, 2**63, -(2**64), 10**30, 0.5, 1.5, -0.0, 0.02, 1e308, -1e-308,
           5e-324, math.nan, math.inf, -math.inf)  # fmt: skip
TEXTS = (
    PRIVATE, f"{PRIVATE}\n{PRIVATE}",
    "", " ", "any", "0", "None", "true", "ddim", "digits", "en", "\0", "\x07\x1b[31m", "\r\nSet-Cookie: a=b", "\ud800", "\U0010ffff",
    "\u202e", "é" * 300, "<script>alert(1)</script>", "{0.__class__.__mro__}", "{{7*7}}", "%s%n%x", "$(id)", "';--", "\\", "1e999",
    "0x10", "9" * 5000, "x" * 100_000, "data:image/png;base64,AAAA", "data:text/html,<b>", "../" * 20 + "etc/passwd",
)  # fmt: skip
PLACES = ("/etc/passwd", "/proc/self/environ", "/proc/self/fd/0", "/dev/zero", "/dev/stdin", "/", ".", "..", "~", "app.py",
          "space/app.py", "file:///etc/passwd", "http://127.0.0.1:1/a.png", "https://[::1]/a", "ftp://127.0.0.1/",
          "http://169.254.169.254/", "\\\\host\\share", "/gradio_api/file=/etc/passwd", "con", "a\0b", "x" * 5000)  # fmt: skip


def wild_value(chance: random.Random, places: tuple[str, ...] = PLACES, depth: int = 0) -> object:
    """Something of any type of JSON, and NaN and the infinities, which Python's JSON has as well.

    Args:
        chance (`random.Random`): from which it follows.
        places (`tuple` of `str`): paths and addresses of what is not the visitor's.
        depth (`int`): how deep it lies in another one.
    """
    kind = chance.randrange(9 if depth < 4 else 5)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.choice(NUMBERS)
    if kind == 2:
        return chance.choice(TEXTS)
    if kind == 3:
        return "".join(chr(chance.randrange(1, 0x3000)) for _ in range(chance.randrange(40)))
    if kind == 4:
        return chance.choice(places)
    if kind == 5:
        return [wild_value(chance, places, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 6:
        return {str(wild_value(chance, places, 4))[:50]: wild_value(chance, places, depth + 1) for _ in range(3)}
    if kind == 7:
        return wild_file(chance, places)
    return nested(chance.choice([10, 300]))


def wild_file(chance: random.Random, places: tuple[str, ...] = PLACES) -> dict:
    """What looks like an upload, and is none."""
    file = {"path": chance.choice([*places, None, 5, []]), "meta": chance.choice([META, META, {}, None])}
    for name in ("url", "orig_name", "mime_type", "size", "is_stream", "__type__", "b64", "data"):
        if chance.random() < 0.2:
            file[name] = chance.choice([*places, *NUMBERS, *TEXTS, "update"])
    return file


def nested(depth: int) -> list:
    """A list in a list in a list."""
    value = []
    for _ in range(depth):
        value = [value]
    return value
