"""docs/EQUATIONS.md names functions and tests that exist, and the numbers of its slips are recomputed."""

import ast
import math
import re

import pytest
from conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "EQUATIONS.md").read_text(encoding="utf-8")
# The names of the project's list of equations, one row each.
NAMES = [
    "normalize", "schedule", "alpha, alpha_bar", "forward step", "scaling", "sum", "two-step merge", "k-step merge",
    "forward marginal", "Bayes", "posterior precision", "posterior linear term", "posterior variance",
    "posterior mean, x_0 form", "x_0 from noise", "posterior mean, ε form", "training (Algorithm 1)",
    "sampling (Algorithm 2)",
]  # fmt: skip


def rows(heading: str) -> list[list[str]]:
    section = TEXT.partition(f"## {heading}")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


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
    assert re.search(r"[一-鿿]", "".join(row)), row
    assert re.search(r"[a-z]{3}", "".join(row)), row


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
            assert f"{value:.3g}" in row[3], (row[0], f"{value:.3g}")
