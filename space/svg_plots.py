"""Plots as inline SVG: the style of the page gives the colours, so they follow its theme and its language.

Pure functions of numbers: no plotting library, no network, the same input gives the same text.
"""

import math
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from both_languages import Both
from svg_text import FONT, drawn_length, number_text, power_text, svg_words

WIDTH, HEIGHT = 340, 250  # in units of the viewBox; a phone of 390 pixels draws one at 0.9 of a pixel
LARGEST_POINTS = 300
KINDS = ("line", "area", "bars")

_LEFT, _RIGHT, _BOTTOM = 52, 12, 24
_ROW = 18
_MOST_TICKS = 5
_NO_VALUES = Both("no values", "无数据")


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour.

    Attributes:
        positions (`Sequence[float]`): on the horizontal axis; of bars the middles, equally spaced.
        values (`Sequence[float]`): as many; NaN and ±∞ are left out, and what is not positive on a logarithmic axis.
        name (`str` or `Both`): as text; `β_t` and `x_{t−1}` have subscripts.
        kind (`str`): `line`, `area` (down to 0) or `bars` (from 0).

    Raises:
        ValueError: for another kind, or if there are not as many values as positions.
    """

    positions: Sequence[float]
    values: Sequence[float]
    name: str | Both
    kind: str = "line"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` is {self.kind!r}; it must be one of {', '.join(map(repr, KINDS))}.")
        if len(self.positions) != len(self.values):
            raise ValueError(f"`positions` has {len(self.positions)} entries and `values` {len(self.values)}.")


def plot(
    title: Both,
    series: Sequence[Series],
    *,
    x_label: str | Both = "",
    y_label: str | Both = "",
    log: bool = False,
    marker: float | None = None,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, str | Both]] = (),
) -> str:
    """An `<svg>` of series over one horizontal axis.

    All text is escaped; what is `Both` is in the page in both languages, of which the style shows one. A screen reader
    is told the title and, where there is a legend, its names and values.

    Args:
        title (`Both`): above the plot.
        series: at most four, or their colours repeat.
        x_label, y_label (`str` or `Both`): below the horizontal axis and above the vertical one.
        log (`bool`): the vertical axis is logarithmic.
        marker (`float`, *optional*): a vertical line here, and the values of the lines and areas here in the legend.
        y_range (`tuple`, *optional*): the vertical axis from, to; what is beyond is cut off.
        marks: positions with a label each, as thin vertical lines.

    Returns:
        `str`: the SVG; it is as wide as its container.
    """
    points = [_drawable(one, log) for one in series]
    spots = [(x, label) for x, label in marks if math.isfinite(x)]
    marker = marker if marker is not None and math.isfinite(marker) else None
    seen = (
        [end for one, kept in zip(series, points, strict=True) for end in _ends(one, kept)]
        + [x for x, _ in spots]
        + [marker] * (marker is not None)
    )
    low, high = _span(seen)

    identity = f"plot-{zlib.crc32(repr((title, series, marker, y_range, spots)).encode()):08x}"
    parts, top, named = _head(identity, title, series, points, marker, y_label)
    labels, rows = _placed(spots, low, high)
    axes = _Axes(low, high, *_vertical(points, series, log, y_range), top + rows * 16 + 6, bool(x_label), log)
    parts.append(axes.drawn(x_label))
    drawn = [
        _drawn(one, kept, f"series-{i % 4 + 1}", axes) for i, (one, kept) in enumerate(zip(series, points, strict=True))
    ]
    inner = f'x="{_LEFT}" y="{axes.top}" width="{axes.width}" height="{axes.height}"'
    parts.append(f'<svg aria-hidden="true" {inner}>{"".join(drawn)}</svg>')
    parts += [axes.mark(x, label, 12 + top + 16 * row) for x, label, row in labels]
    if marker is not None:
        values = [
            math.nan if one.kind == "bars" else _value_at(kept, marker)
            for one, kept in zip(series, points, strict=True)
        ]
        parts.append(axes.marker(marker, values))
    if not any(points):
        parts.append(f'<text class="plot-middle" x="{WIDTH / 2:g}" y="{HEIGHT / 2:g}">{svg_words(_NO_VALUES)}</text>')
    frame = f'class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{named}" font-size="{FONT}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


# --- Numbers ------------------------------------------------------------------------------------------------------------


def _drawable(series: Series, log: bool) -> list[tuple[float, float]]:
    """The points of a series from left to right; where a value is left out, NaN stands for the gap."""
    pairs = sorted(
        (float(x), float(y)) for x, y in zip(series.positions, series.values, strict=True) if math.isfinite(x)
    )
    kept = [(x, y if math.isfinite(y) and (y > 0 or not log) else math.nan) for x, y in pairs]
    return kept if any(not math.isnan(y) for _, y in kept) else []


def _value_at(points: list[tuple[float, float]], x: float) -> float:
    """The value at x, between two points on the straight line; NaN outside of all points."""
    if not points or not points[0][0] <= x <= points[-1][0]:
        return math.nan
    i = bisect_left(points, (x, -math.inf))
    (right, above), (left, below) = points[min(i, len(points) - 1)], points[max(i - 1, 0)]
    return above if right in (x, left) else below + (above - below) * (x - left) / (right - left)


def _bar_width(points: list[tuple[float, float]]) -> float:
    return min((b[0] - a[0] for a, b in pairwise(points) if b[0] > a[0]), default=1.0)


def _ends(series: Series, points: list[tuple[float, float]]) -> tuple[float, ...]:
    """Where a series begins and ends on the horizontal axis."""
    margin = _bar_width(points) / 2 if series.kind == "bars" else 0.0
    return (points[0][0] - margin, points[-1][0] + margin) if points else ()


def _span(values: list[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _vertical(points: list, series: Sequence[Series], log: bool, y_range) -> tuple[float, float]:
    """The ends of the vertical axis: those given, else round numbers around all values."""
    if y_range is not None:
        return y_range
    values = [y for one in points for _, y in one if not math.isnan(y)]
    if log:
        low, high = (math.log10(min(values)), math.log10(max(values))) if values else (0, 1)
        low, high = math.floor(low), math.ceil(high)
        return 10.0**low, 10.0 ** max(high, low + 1)
    low, high = _span(values)
    if any(one.kind != "line" for one in series) or 0 <= low <= high / 2:
        low, high = min(low, 0.0), max(high, 0.0)
    step = _step(low, high)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _step(low: float, high: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers from end to end; very small and very large ones share a power of ten."""
    step = _step(low, high)
    power = math.floor(math.log10(step) + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if power >= -4 and max(abs(low), abs(high)) < 1e5:
        labels = [f"{k * step:.{max(0, -power)}f}" for k in range(first, last + 1)]
    else:
        labels = [f"{k * round(step / 10.0**power)}·{power_text(power)}" if k else "0" for k in range(first, last + 1)]
    return [(k * step, label.replace("-", "−")) for k, label in zip(range(first, last + 1), labels, strict=True)]


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first) / _MOST_TICKS))
    return [(10.0**power, power_text(power)) for power in range(last, first - 1, -every)]


# --- Drawing ------------------------------------------------------------------------------------------------------------


def _head(
    identity: str, title: Both, series: Sequence[Series], points: list, marker: float | None, y_label: str | Both
) -> tuple[list[str], int, str]:
    """What stands above the plot, how high it is, and the ids of the parts that name the plot."""
    parts = [f'<text id="{identity}" class="plot-title" x="{WIDTH / 2:g}" y="14">{svg_words(title)}</text>']
    top, named = _ROW + 6, identity
    if len(series) > 1 or marker is not None:
        legend, rows = _legend(series, points, marker, top)
        parts.append(f'<g id="{identity}-values" class="plot-legend">{legend}</g>')
        named += f" {identity}-values"
        top += rows * _ROW
    if y_label:
        parts.append(f'<text x="2" y="{top + 10}">{svg_words(y_label)}</text>')
        top += _ROW
    return parts, top, named


def _legend(series: Sequence[Series], points: list, marker: float | None, top: float) -> tuple[str, int]:
    """The names with their values at the marker, in as many rows as they need."""
    drawn, x, row = "", 4.0, 0
    for i, (one, kept) in enumerate(zip(series, points, strict=True)):
        has_value = marker is not None and one.kind != "bars"
        width = 30 + drawn_length(one.name) + has_value * drawn_length(" = 9.99·10⁻⁹") + 8
        if x > 4 and x + width > WIDTH:
            x, row = 4.0, row + 1
        y = top + row * _ROW
        sign = f'd="M{x:.1f} {y + 5}h20"' if one.kind == "line" else f'd="M{x:.1f} {y}h20v11h-20z"'
        kind = "line" if one.kind == "line" else "area"
        value = f" = {number_text(_value_at(kept, marker))}" if has_value else ""
        drawn += f'<path class="series-{i % 4 + 1} plot-{kind}" {sign}/>'
        drawn += f'<text x="{x + 26:.1f}" y="{y + 10}">{svg_words(one.name, value)}</text>'
        x += width
    return drawn, row + 1


def _placed(
    spots: list[tuple[float, str | Both]], low: float, high: float
) -> tuple[list[tuple[float, str | Both, int]], int]:
    """The marks, each with the row of its label in which it touches no other, and how many rows there are."""
    ends: list[float] = []
    placed = []
    for x, label in sorted(spots, key=lambda spot: spot[0]):
        middle, half = _LEFT + (x - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), drawn_length(label) / 2 + 3
        row = next((i for i, end in enumerate(ends) if end <= middle - half), len(ends))
        ends[row : row + 1] = [middle + half]
        placed.append((x, label, row))
    return placed, len(ends)


def _drawn(series: Series, points: list[tuple[float, float]], name: str, axes: "_Axes") -> str:
    """A series in the coordinates of the inner drawing, which cuts off what is beyond the axes."""
    base = axes.y(0.0 if not axes.log else axes.bottom) - axes.top
    if series.kind == "bars":
        width = 0.9 * _bar_width(points)
        bars = "".join(
            f"M{axes.x(x - width / 2) - _LEFT:.1f} {base:.1f}V{axes.y(y) - axes.top:.1f}"
            f"H{axes.x(x + width / 2) - _LEFT:.1f}V{base:.1f}z"
            for x, y in points
            if not math.isnan(y)
        )
        return f'<path class="{name} plot-bars" d="{bars}"/>' if bars else ""
    drawn = ""
    for run in _runs(points):
        corners = [f"{axes.x(x) - _LEFT:.1f} {axes.y(y) - axes.top:.1f}" for x, y in run]
        line = "M" + "L".join(corners if len(corners) > 1 else corners * 2)
        if series.kind == "area":
            ends = [axes.x(x) - _LEFT for x in (run[-1][0], run[0][0])]
            drawn += f'<path class="{name} plot-area" d="{line}L{ends[0]:.1f} {base:.1f}L{ends[1]:.1f} {base:.1f}z"/>'
        drawn += f'<path class="{name} plot-line" d="{line}"/>'
    return drawn


def _runs(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The points between gaps; of very many some, the ends among them."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isnan(y):
            runs.append([])
        else:
            runs[-1].append((x, y))
    runs = [run for run in runs if run]
    share = LARGEST_POINTS / max(LARGEST_POINTS, sum(map(len, runs)))
    return [_thinned(run, max(2, int(len(run) * share))) for run in runs]


def _thinned(run: list, count: int) -> list:
    if len(run) <= count:
        return run
    return [run[round(i * (len(run) - 1) / (count - 1))] for i in range(count)]


@dataclass(frozen=True)
class _Axes:
    """Where numbers lie in the drawing."""

    low: float
    high: float
    bottom: float
    ceiling: float
    top: float
    has_label: bool
    log: bool

    @property
    def width(self) -> float:
        return WIDTH - _LEFT - _RIGHT

    @property
    def height(self) -> float:
        return HEIGHT - self.top - _BOTTOM - _ROW * self.has_label

    def x(self, x: float) -> float:
        return _LEFT + (x - self.low) / (self.high - self.low) * self.width

    def y(self, y: float) -> float:
        low, high = self.bottom, self.ceiling
        if self.log:
            low, high, y = math.log10(low), math.log10(high), math.log10(y)
        # Far beyond the axes nothing is seen, and no renderer needs such numbers.
        return self.top + self.height * min(max(1 - (y - low) / (high - low), -1.0), 2.0)

    def drawn(self, x_label: str | Both) -> str:
        """The grid, the numbers along the axes and the label."""
        floor, right = self.top + self.height, _LEFT + self.width
        vertical = _decades(self.bottom, self.ceiling) if self.log else _ticks(self.bottom, self.ceiling)
        horizontal = _ticks(self.low, self.high)
        grid = "".join(f"M{_LEFT} {self.y(y):.1f}H{right}" for y, _ in vertical)
        grid += "".join(f"M{self.x(x):.1f} {self.top}V{floor}" for x, _ in horizontal)
        texts = [f'<text class="plot-left" x="{_LEFT - 6}" y="{self.y(y) + 4.5:.1f}">{t}</text>' for y, t in vertical]
        texts += [
            f'<text class="plot-middle" x="{min(self.x(x), WIDTH - drawn_length(t) / 2):.1f}" y="{floor + 16:g}">{t}</text>'
            for x, t in horizontal
        ]
        if x_label:
            texts.append(
                f'<text class="plot-middle" x="{_LEFT + self.width / 2:g}" y="{HEIGHT - 7}">{svg_words(x_label)}</text>'
            )
        return f'<path class="plot-grid" d="{grid}"/><path class="plot-axis" d="M{_LEFT} {floor}H{right}"/>{"".join(texts)}'

    def mark(self, x: float, label: str | Both, baseline: float) -> str:
        """A thin line at x with a label above the plot."""
        place, half = self.x(x), drawn_length(label) / 2
        middle = min(max(place, half), WIDTH - half)
        return (
            f'<path class="plot-mark" d="M{place:.1f} {baseline + 4:g}V{self.top + self.height:g}"/>'
            f'<text class="plot-middle" x="{middle:.1f}" y="{baseline:g}">{svg_words(label)}</text>'
        )

    def marker(self, x: float, values: list[float]) -> str:
        """The line at x, and a dot at each value that can be seen."""
        place = self.x(x)
        inside = [(i, y) for i, y in enumerate(values) if self.bottom <= y <= self.ceiling]
        dots = "".join(
            f'<circle class="series-{i % 4 + 1} plot-dot" cx="{place:.1f}" cy="{self.y(y):.1f}" r="4.5"/>'
            for i, y in inside
        )
        return f'<path class="plot-marker" d="M{place:.1f} {self.top}V{self.top + self.height:g}"/>{dots}'
