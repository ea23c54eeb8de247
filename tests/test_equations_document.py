"""docs/EQUATIONS.md names functions and tests that exist, the numbers of its slips are recomputed, and GitHub and KaTeX can
read its formulas."""

import ast
import math
import re

import pytest
from conftest import REPOSITORY
from markdown_it import MarkdownIt

TEXT = (REPOSITORY / "docs" / "EQUATIONS.md").read_text(encoding="utf-8")
# The names of the project's list of equations, one row each.
NAMES = [
    "normalize", "schedule", "alpha, alpha_bar", "forward step", "scaling", "sum", "two-step merge", "k-step merge",
    "forward marginal", "Bayes", "posterior precision", "posterior linear term", "posterior variance",
    "posterior mean, x_0 form", "x_0 from noise", "posterior mean, ε form", "training (Algorithm 1)",
    "sampling (Algorithm 2)",
]  # fmt: skip
FORMULA = re.compile(r"\$([^$]*)\$")
CHINESE = re.compile(r"[一-鿿]")


def rows(heading: str) -> list[list[str]]:
    section = TEXT.partition(f"## {heading}")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


STATED, BEYOND, SLIPS = rows("Stated"), rows("Beyond"), rows("Slips")


def defined(path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def missing(reference: str, folder: str) -> bool:
    file, _, name = reference.partition(":")
    path = REPOSITORY / file if "/" in file else REPOSITORY / folder / file
    return not path.is_file() or name not in defined(path)


def test_there_is_a_row_for_every_name():
    assert [row[0].split(" / ")[0] for row in STATED] == NAMES
    assert len(BEYOND) >= 6
    assert len(SLIPS) == 7


@pytest.mark.parametrize("row", STATED + BEYOND, ids=lambda row: row[0].split(" / ")[0])
def test_the_functions_and_tests_of_a_row_exist(row):
    assert len(row) == 5
    functions, tests = (re.findall(r"`([^`]+)`", cell) for cell in row[2:4])
    assert functions
    assert tests
    assert [f for f in functions if missing(f, "ddpm_hub")] == []
    assert [t for t in tests if missing(t, "tests")] == []
    assert re.fullmatch(r"(S[0-4] ?)+|\[arXiv:.*|from Bayes.*", row[4])


def test_the_check_can_fail():
    assert missing("ddpm_equations.py:posterior_meen_weights", "ddpm_hub")
    assert missing("ddpm_equation.py:normalize", "ddpm_hub")


@pytest.mark.parametrize("row", STATED + BEYOND + SLIPS, ids=lambda row: row[0][:24])
def test_every_row_speaks_both_languages(row):
    assert CHINESE.search("".join(row)), row
    assert re.search(r"[a-z]{3}", "".join(row)), row


def texts() -> list[str]:
    """The headings and cells, each of them the same in both languages or `English / 中文`."""
    cells = [cell.strip() for line in TEXT.splitlines() if line.startswith("| ") for cell in line.split("|")[1:-1]]
    return re.findall(r"^#+ (.*)", TEXT, re.MULTILINE) + cells


def language_is_clear(text: str) -> bool:
    """A text without Chinese has no " / "; one with Chinese has one, with the same formulas on its two sides."""
    halves = text.split(" / ")
    if len(halves) == 1:
        return not CHINESE.search(text)
    english, chinese = halves[0], halves[-1]
    alike = sorted(FORMULA.findall(english)) == sorted(FORMULA.findall(chinese))
    return len(halves) == 2 and alike and not CHINESE.search(english) and bool(CHINESE.search(chinese))


def test_every_text_is_in_both_languages_or_in_neither():
    assert len(texts()) > 150
    assert [text for text in texts() if not language_is_clear(text)] == []


@pytest.mark.parametrize(
    "text", ["with / 取 $x$ = 1 and / 与 2", "a $x$ / 甲 $y$", "甲 / a", "a / b", "甲", "$x$ for data / $x$"]
)
def test_an_unclear_language_is_seen(text):
    assert not language_is_clear(text)


def test_every_paragraph_has_a_twin():
    paragraphs = [block for block in re.split(r"\n\s*\n", TEXT) if not block.startswith(("#", "|"))]
    assert len(paragraphs) == 8
    for english, chinese in zip(paragraphs[::2], paragraphs[1::2], strict=True):
        assert not CHINESE.search(english)
        assert CHINESE.search(chinese)
        assert sorted(FORMULA.findall(english)) == sorted(FORMULA.findall(chinese))


def test_every_equation_is_a_formula():
    assert [row[0] for row in STATED + BEYOND if not FORMULA.search(row[1])] == []
    typed = "".join([row[1] for row in STATED + BEYOND] + [cell for row in SLIPS for cell in row])
    assert re.findall(r"[Α-ωᾱ√∏½²‖−]", typed) == []


def faults(text: str) -> list[str]:
    """What GitHub or KaTeX would stumble over in the formulas of a text."""
    found = ["an odd number of $"] if text.count("$") % 2 else []
    for match in FORMULA.finditer(text):
        formula, before, after = match[1], text[: match.start()][-1:], text[match.end() :][:1]
        # GitHub takes a $ for a delimiter where a space or a sign stands at its outer side and none at its inner side.
        if formula != formula.strip() or before.strip() not in ("", "(") or after.strip() not in ("", *",;:.)"):
            found.append(f"not spaced: {formula}")
        if re.search(r"\\[^a-zA-Z]|[|~]|[^\x20-\x7e]|\\operatorname", formula):
            found.append(f"not portable: {formula}")
        depths = [formula[:end].count("{") - formula[:end].count("}") for end in range(len(formula) + 1)]
        if min(depths) < 0 or depths[-1]:
            found.append(f"unbalanced braces: {formula}")
    return found


def as_markdown_reads_it(text: str) -> list[str]:
    """The formulas that are left when Markdown has taken its emphasis, escapes and HTML out of a text."""
    inline = [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.children]
    read = ["".join(part.content or " " for part in token.children if part.type != "html_inline") for token in inline]
    return [formula for part in read for formula in FORMULA.findall(part)]


def test_github_and_katex_can_read_every_formula():
    assert [fault for block in re.split(r"\n\s*\n|\|", TEXT) for fault in faults(block)] == []
    assert as_markdown_reads_it(TEXT) == FORMULA.findall(TEXT)
    assert len(FORMULA.findall(TEXT)) > 100


@pytest.mark.parametrize(
    "text", ["$x", "$ x$", "$x$甲", "a$x$", r"$\{x\}$", r"$\|x\|$", "$β$", "$a~b~c$", "$x^{2$", "$x}^{2$"]
)
def test_a_fault_is_seen(text):
    assert faults(text)


@pytest.mark.parametrize("text", [r"$\tilde{\beta}_t + \tilde{\mu}_{t}$", r"$\lbrace \{x \rbrace$", "$a <b > c$"])
def test_what_markdown_breaks_is_seen(text):
    assert as_markdown_reads_it(text) != FORMULA.findall(text)


def written(value: float) -> str:
    """As the document writes a number: three digits, small ones with a power of ten."""
    return re.sub(r"e-0?(\d+)", r" \\times 10^{-\1}", f"{value:.3g}")


def chain(end: float = 0.02, num_train: int = 1000) -> tuple[list[float], list[float]]:
    """ᾱ_0…ᾱ_T and β_0…β_T, β_0 unused."""
    betas = [0.0] + [1e-4 + (end - 1e-4) * i / (num_train - 1) for i in range(num_train)]
    products = [1.0]
    for beta in betas[1:]:
        products.append(products[-1] * (1 - beta))
    return products, betas


def test_the_numbers_of_the_slips():
    abar, beta = chain()
    t, s, c = 500, 400, 0.25
    precision = (1 - beta[t]) / beta[t] + 1 / (1 - abar[t - 1])
    at_2 = (1 - beta[2]) / beta[2]
    jump = 1 - abar[t] / abar[s]
    small, weight = jump * (1 - abar[s]) / (1 - abar[t]), math.sqrt(abar[s]) * jump / (1 - abar[t])
    known = c * (1 - abar[t]) / (abar[t] * c + 1 - abar[t])
    numbers = [
        (chain(0.002)[0][-1], chain(0.002, 2000)[0][-1], abar[-1]),
        (math.sqrt(1 - beta[t]), math.sqrt(abar[t])),
        (math.sqrt(precision), 1 / math.sqrt(precision)),
        (1 / (at_2 + 1 / (1 - abar[2])), 1 / (at_2 + 1 / (1 - abar[1]))),
        (small + weight**2 * known, small),
        (abar[-1], abar[t]),
        (1 - (1 - beta[t]) * (1 - beta[t - 1]), abar[t] * beta[t - 1] + beta[t]),
    ]
    for row, values in zip(SLIPS, numbers, strict=True):
        for value in values:
            assert row[3].count(written(value)) == 2, (row[0], written(value))
