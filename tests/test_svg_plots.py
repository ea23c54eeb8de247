"""Plots: well-formed, in both languages, with round ticks, and true to the numbers."""

import itertools
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import svg_plots
from both_languages import Both
from svg_plots import Series, plot
from svg_text import FONT, html_words, number_text

TITLE = Both("What is left", "还剩多少")
STYLE = (Path(svg_plots.__file__).parent / "page.css").read_text(encoding="utf-8")
# Of the page's background, by theme (gr.themes.Soft and whatever is darker or lighter than it).
BACKGROUNDS = {"light": "#f8fafc", "dark": "#1e293b"}
NARROWEST = 302  # what is left of a phone of 390 pixels, measured


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str, language: str = "en") -> list[str]:
    """What each `<text>` says in a language."""

    def spoken(element: ElementTree.Element) -> str:
        if element.get("lang") not in (None, language):
            return element.tail or ""
        return (element.text or "") + "".join(map(spoken, element)) + (element.tail or "")

    return [spoken(element).strip() for element in parsed(svg).iter("text")]


def corners(svg: str, kind: str = "line") -> list[list[tuple[float, float]]]:
    """The points of each run of each series."""
    inner = next(parsed(svg).iter("svg")).find("svg")
    paths = [path.get("d") for path in inner.iter("path") if f"plot-{kind}" in path.get("class")]
    return [[tuple(map(float, pair.split())) for pair in path[1:].split("L")] for path in paths]


def line(count: int = 11, name: str | Both = "β_t", **properties) -> Series:
    return Series(range(count), [i / 10 for i in range(count)], name, **properties)


class TestWords:
    def test_the_title_is_in_both_languages(self):
        svg = plot(TITLE, [line()])
        assert texts(svg, "en")[0] == TITLE.en
        assert texts(svg, "zh")[0] == TITLE.zh

    def test_all_words_are_in_both_languages(self):
        both = Both("step", "步")
        svg = plot(TITLE, [line(name=both), line(name=both)], x_label=both, y_label=both, marks=[(3, both)])
        for language in ("en", "zh"):
            assert texts(svg, language).count(getattr(both, language)) == 5

    def test_screen_readers_hear_the_title_and_the_legend(self):
        svg = parsed(plot(TITLE, [line(), line(name="ᾱ_t")], marker=5))
        assert svg.get("role") == "img"
        named = [
            next(part for part in svg.iter() if part.get("id") == one) for one in svg.get("aria-labelledby").split()
        ]
        said = "".join("".join(part.itertext()) for part in named)
        assert TITLE.en in said
        assert "βt = 0.500" in said
        assert "ᾱt = 0.500" in said

    @pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "\"&'", "</text><b>", "x_<", "]]>", "a_{<i>}"])
    def test_hostile_text_is_escaped(self, hostile):
        words = Both(hostile, hostile)
        svg = plot(words, [line(name=hostile), line(name=words)], x_label=words, y_label=hostile, marks=[(1, hostile)])
        assert {element.tag for element in parsed(svg).iter()} <= {"svg", "g", "path", "text", "tspan", "circle"}
        plain = re.sub(r"_\{([^}]*)\}", r"\1", hostile)
        assert texts(svg)[0] == plain
        assert "<" not in re.sub("</?(span|sub)[^>]*>", "", html_words(words))

    def test_subscripts_are_taken_back(self):
        svg = parsed(plot(TITLE, [line()], x_label="√(1−ᾱ_t) and x_{t−1}"))
        shifts = [float(part.get("dy")) for part in svg.iter("tspan") if part.get("dy")]
        assert shifts == [3, -3, 3]

    def test_text_is_large_enough_on_a_phone(self):
        assert FONT * NARROWEST / svg_plots.WIDTH >= 11


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0, "0"),
            (-0.0, "0"),
            (0.39412, "0.394"),
            (1, "1.00"),
            (-12, "−12.0"),
            (4.04e-5, "4.04·10⁻⁵"),
            (9999.96, "10000"),
            (1e5, "1.00·10⁵"),
            (math.inf, "∞"),
            (-math.inf, "−∞"),
            (math.nan, "–"),
        ],
    )
    def test_number_text(self, value, text):
        assert number_text(value) == text

    def test_number_text_is_right_to_its_digits(self):
        rng = random.Random(0)
        powers = {sign: digit for digit, sign in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}
        for _ in range(300):
            value = rng.uniform(-1, 1) * 10 ** rng.uniform(-12, 8)
            mantissa, _, power = number_text(value).replace("−", "-").partition("·10")
            read = float(mantissa) * 10 ** int("".join(powers[sign] for sign in power) or 0)
            assert read == pytest.approx(value, rel=0.0051)

    def test_ticks_are_round_few_and_inside(self):
        rng = random.Random(1)
        for _ in range(300):
            low = rng.uniform(-1, 1) * 10 ** rng.uniform(-6, 4)
            high = low + 10 ** rng.uniform(-6, 4)
            ticks = svg_plots._ticks(low, high)
            step = (ticks[1][0] - ticks[0][0]) / 10 ** math.floor(math.log10(ticks[1][0] - ticks[0][0]) + 1e-6)
            assert min(abs(step - round_one) for round_one in (1, 2, 5, 10)) < 1e-3
            assert 2 <= len(ticks) <= 7
            assert low - 1e-6 * (high - low) <= ticks[0][0] < ticks[-1][0] <= high + 1e-6 * (high - low)
            labels = [label for _, label in ticks]
            assert len(set(labels)) == len(labels)

    def test_decades_of_a_logarithmic_axis(self):
        svg = plot(TITLE, [Series(range(4), [1e4, 1, 1e-3, 3e-5], "SNR")], log=True)
        assert [text for text in texts(svg) if text.startswith("10")] == ["10⁴", "10²", "10⁰", "10⁻²", "10⁻⁴"]


class TestDrawing:
    def test_lies_where_the_numbers_say(self):
        svg = plot(TITLE, [Series([0, 1, 4], [0, 10, 20], "a")])
        (run,) = corners(svg)
        assert run[1][0] - run[0][0] == pytest.approx((run[2][0] - run[0][0]) / 4, abs=0.1)
        assert run[0][1] - run[1][1] == pytest.approx((run[0][1] - run[2][1]) / 2, abs=0.1)

    def test_logarithms_are_equally_spaced(self):
        (run,) = corners(plot(TITLE, [Series(range(4), [1, 10, 100, 1000], "a")], log=True))
        heights = [run[i][1] - run[i + 1][1] for i in range(3)]
        assert heights == pytest.approx([heights[0]] * 3, abs=0.15)
        assert heights[0] > 30

    @pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_is_a_gap(self, missing):
        runs = corners(plot(TITLE, [Series(range(7), [0, 1, 2, missing, 4, 5, 6], "a")]))
        assert [len(run) for run in runs] == [3, 3]

    def test_what_has_no_logarithm_is_left_out(self):
        runs = corners(plot(TITLE, [Series(range(4), [0, -1, 2, 3], "a")], log=True))
        assert [len(run) for run in runs] == [2]

    @pytest.mark.parametrize("values", [[], [math.nan] * 3, [math.inf, -math.inf]])
    @pytest.mark.parametrize("log", [False, True])
    @pytest.mark.parametrize("kind", svg_plots.KINDS)
    def test_nothing_to_draw(self, values, log, kind):
        svg = plot(TITLE, [Series(range(len(values)), values, "a", kind)], log=log, marker=1)
        assert "no values" in texts(svg)
        assert "无数据" in texts(svg, "zh")
        assert "nan" not in svg
        assert "inf" not in svg.replace("no values", "")

    def test_no_series_at_all(self):
        parsed(plot(TITLE, []))

    def test_one_point_and_a_constant(self):
        parsed(plot(TITLE, [Series([1], [5], "a"), Series([1, 2], [5, 5], "b", "bars")], marker=1))

    def test_long_series_are_thinned_and_keep_their_ends(self):
        count = 4000
        whole = Series(range(count), [math.sin(i / 500) for i in range(count)], "a")
        (run,) = corners(plot(TITLE, [whole]))
        assert 200 < len(run) <= svg_plots.LARGEST_POINTS
        few = Series([0, count - 1], [whole.values[0], whole.values[-1]], "a")
        (ends,) = corners(plot(TITLE, [few], y_range=(-1, 1)))
        assert [run[0], run[-1]] == [ends[0], ends[1]]

    def test_bars_stand_on_zero(self):
        svg = plot(TITLE, [Series([0, 1, 2], [1, 2, 3], "a", "bars")])
        path = next(p for p in parsed(svg).iter("path") if "plot-bars" in p.get("class") and "M" in p.get("d")[1:])
        bars = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)", path.get("d"))
        heights = [float(base) - float(top) for _, base, top, _ in bars]
        assert heights == pytest.approx([heights[0] * k for k in (1, 2, 3)], abs=0.2)
        assert all(float(left) < float(right) for left, _, _, right in bars)
        assert all(float(a[3]) < float(b[0]) for a, b in itertools.pairwise(bars))

    def test_far_values_stay_near(self):
        (run,) = corners(plot(TITLE, [Series([0, 1], [-1e30, 1e30], "a")], y_range=(0, 1)))
        assert all(abs(y) < 1000 for _, y in run)

    def test_same_numbers_same_text(self):
        assert plot(TITLE, [line()], marker=2) == plot(TITLE, [line()], marker=2)

    def test_unsorted_positions(self):
        rising, falling = ([0, 1, 2], [5, 6, 7]), ([2, 1, 0], [7, 6, 5])
        assert corners(plot(TITLE, [Series(*rising, "a")])) == corners(plot(TITLE, [Series(*falling, "a")]))

    def test_refusals(self):
        with pytest.raises(ValueError, match="`kind` is 'dots'; it must be one of 'line', 'area', 'bars'"):
            Series([1], [1], "a", "dots")
        with pytest.raises(ValueError, match="`positions` has 2 entries and `values` 1"):
            Series([1, 2], [1], "a")


class TestMarker:
    def test_value_in_the_legend_and_dot_on_the_line(self):
        svg = plot(TITLE, [Series([0, 10], [0, 1], "a"), Series([0, 10], [1, 0], "b")], marker=2.5)
        assert "a = 0.250" in texts(svg)
        assert "b = 0.750" in texts(svg)
        a, b = parsed(svg).findall("circle")
        assert a.get("cx") == b.get("cx")
        assert float(a.get("cy")) > float(b.get("cy"))

    def test_where_a_series_has_no_value(self):
        svg = plot(TITLE, [Series([0, 1], [0, 1], "a"), Series([0, 5], [0, 1], "b")], marker=3)
        assert "a = –" in texts(svg)
        assert len(parsed(svg).findall("circle")) == 1

    @pytest.mark.parametrize("marker", [None, math.nan, math.inf])
    def test_no_marker(self, marker):
        assert "plot-marker" not in plot(TITLE, [line()], marker=marker)

    def test_marks_that_are_close_do_not_overlap(self):
        svg = plot(TITLE, [line()], marks=[(5, "x_t"), (5.1, "x_0"), (5.2, "μ̃")])
        labels = [t for t in parsed(svg).iter("text") if "".join(t.itertext()) in ("xt", "x0", "μ̃")]
        assert len({label.get("y") for label in labels}) == 3

    def test_marks_beyond_the_series_are_seen(self):
        places = [float(re.match(r"M([\d.]+)", path.get("d"))[1])
                  for path in parsed(plot(TITLE, [line()], marks=[(-5, "a"), (20, "b")])).iter("path")
                  if path.get("class") == "plot-mark"]  # fmt: skip
        assert all(0 < place < svg_plots.WIDTH for place in places)
        assert len(places) == 2


def luminance(color: str) -> float:
    """Of WCAG 2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_seen_in_both_themes(theme):
    prefix = r"^\.dark " if theme == "dark" else "^"
    colors = re.findall(prefix + r"\.series-\d \{ --series: (#\w{6});", STYLE, re.MULTILINE)
    assert len(set(colors)) == 4
    for color in colors:
        low, high = sorted((luminance(color), luminance(BACKGROUNDS[theme])))
        assert (high + 0.05) / (low + 0.05) >= 3


def test_every_series_has_its_own_dashes():
    dashes = re.findall(r"^\.series-\d \{ --series: #\w{6}; --dashes: ([^;]+);", STYLE, re.MULTILINE)
    assert len(set(dashes)) == 4
