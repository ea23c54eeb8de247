"""Numbers and words as plots write them."""

import html
import math
import re

from both_languages import Both

FONT = 13  # in units of the viewBox of a plot

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SUBSCRIPT = re.compile(r"_(?:\{([^}]*)\}|(\w))")
_WIDE = re.compile(r"[\u2e80-\u9fff\uff00-\uffef]")
_COMBINING = re.compile(r"[\u0300-\u036f]")


def number_text(value: float, digits: int = 3) -> str:
    """A number for readers: `0.394`, `4.04·10⁻⁵`, `−12`.

    Args:
        value (`float`): any; `∞`, `−∞` and `–` stand for the values that are no numbers.
        digits (`int`): significant ones.
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if value == 0 or -4 < power < max(digits, 5):
        return f"{float(mantissa + 'e' + exponent):.{max(0, digits - 1 - power)}f}".replace("-", "−") if value else "0"
    return f"{mantissa}·{power_text(power)}".replace("-", "−")


def power_text(power: int) -> str:
    return "10" + str(power).translate(_SUPERSCRIPTS)


def svg_words(text: str | Both, after: str = "") -> str:
    """Text as the content of a `<text>`: escaped, with subscripts, in both languages where it is `Both`."""
    if isinstance(text, Both):
        return "".join(
            f'<tspan class="{language}" lang="{language}">{_with_subscripts(getattr(text, language) + after)}</tspan>'
            for language in ("en", "zh")
        )
    return _with_subscripts(text + after)


def _with_subscripts(text: str) -> str:
    # `baseline-shift` is not known to all browsers; a shift lasts until it is taken back.
    pieces, end = [], 0
    for match in _SUBSCRIPT.finditer(text):
        pieces.append((text[end : match.start()], match.group(1) or match.group(2) or ""))
        end = match.end()
    written, shifted = "", False
    for plain, subscript in pieces:
        written += _shifted_back(plain, shifted)
        written += f'<tspan dy="{-3 * (shifted and not plain) + 3}" font-size="75%">{html.escape(subscript)}</tspan>'
        shifted = True
    return written + _shifted_back(text[end:], shifted)


def _shifted_back(plain: str, shifted: bool) -> str:
    return f'<tspan dy="-3">{html.escape(plain)}</tspan>' if shifted and plain else html.escape(plain)


def drawn_length(text: str | Both) -> float:
    """About how wide text is drawn, in units of the viewBox."""
    if isinstance(text, Both):
        return max(drawn_length(text.en), drawn_length(text.zh))
    text = _COMBINING.sub("", _SUBSCRIPT.sub(lambda match: (match.group(1) or match.group(2) or "")[::2], text))
    return sum(FONT if _WIDE.match(letter) else 0.62 * FONT for letter in text)


def html_words(text: Both) -> str:
    """The same text for HTML outside of plots: escaped, with `<sub>`, in both languages."""
    return Both(*(_SUBSCRIPT.sub(_sub, html.escape(words)) for words in (text.en, text.zh))).html


def _sub(match: re.Match) -> str:
    return f"<sub>{match.group(1) or match.group(2) or ''}</sub>"
