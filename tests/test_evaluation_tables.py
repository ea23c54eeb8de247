"""Every figure of metrics.json is in the tables, a missing one leaves a gap, and the document of the schema knows every key."""

import copy
import itertools

import pytest
from conftest import REPOSITORY
from markdown_it import MarkdownIt
from test_model_card import leaves

from ddpm_hub.evaluation_tables import evaluation_markdown, with_error
from ddpm_hub.metrics_file import METRICS, metrics_fault

PARTS = ("evaluation", "bound", "calibration", "quality", "memorisation", "classes", "colour", "quality_by_steps", "quality_by_guidance", "equal_time")  # fmt: skip


def filled(form, numbers, where=""):
    """A value of a form, in which every number is another one of three digits, and every text another one; errors are small."""
    if isinstance(form, dict):
        return {key: filled(inner, numbers, f"{where}.{key}") for key, inner in form.items()}
    if isinstance(form, list):
        return [filled(form[0], numbers, f"{where}[0]")]
    number, small = next(numbers), where.endswith(("standard_error", "spread"))
    return {int: number, float: number / (1e9 if small else 1e3), str: f"text{number}", bool: True}[form]


def metrics() -> dict:
    numbers = itertools.count(211)
    return {part: filled(METRICS[part], numbers) for part in PARTS}


# Told in words, as an error of two digits beside its value, or only to programs.
_ELSEWHERE = {"is_flagged", "standard_error", "kid_standard_error", "spread", "type", "limit", "num_samples", "num_unseen",
              "seed", "dtype", "mean", "real_mean", "split"}  # fmt: skip


def test_the_form_is_one_that_the_check_takes():
    assert metrics_fault(metrics()) is None


def test_every_figure_is_there():
    text = evaluation_markdown(metrics())
    for path, value in leaves(metrics()):
        if path[-1] in _ELSEWHERE or (path[0] in ("evaluation", "quality") and path[-1] == "eta"):
            continue
        if "guidance_interval" in path:
            continue  # of two numbers, or it is none: test_model_card.py
        if "quality_by" in path[0] and path[-1] in ("eta", "guidance_scale"):
            continue  # the same in all rows, or told by the sampler
        shown = {
            str(value),
            f"{value:.1%}" if isinstance(value, float) else "",
            f"{value * 1000:g}" if isinstance(value, float) else "",
        }
        assert any(each and each in text for each in shown), (path, value)


def test_any_figure_may_be_missing():
    whole = metrics()
    for path, _ in leaves(whole):
        if path[0] == "evaluation" and path[-1] in ("type", "name"):
            continue
        changed = copy.deepcopy(whole)
        place = changed
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        assert metrics_fault(changed) is None
        evaluation_markdown(changed)


def test_every_table_is_one():
    """Each renders as a table, with as many cells in all of its rows."""
    html = MarkdownIt("commonmark").enable("table").render(evaluation_markdown(metrics()))
    assert html.count("<table>") == len(PARTS)
    assert "|" not in html


def test_nothing_in_a_text_is_more_than_text():
    given = metrics()
    given["classes"]["judge"] = "<script>alert(1)</script> | `x` [a](b)"
    given["bound"]["rows"][0]["variance_type"] = "`|<b>"
    given["quality"]["extractor_sha256"] = "`<i>`"
    html = MarkdownIt("commonmark").enable("table").render(evaluation_markdown(given))
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert "<a " not in html.replace('<a href="https://arxiv.org/abs/2006.11239">', "")


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (5.07312, 0.0404, "5.073 ± 0.040"),
        (-0.0029, 0.0099, "-0.0029 ± 0.0099"),
        (123456.7, 250.0, "123,457 ± 250"),
        (0.5, None, "0.5"),
        (0.5, 0.0, "0.5"),
    ],
)
def test_an_error_has_two_digits(value, error, said):
    assert with_error(value, error) == said


def test_the_document_names_every_key():
    text = (REPOSITORY / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
    keys = {key for part in METRICS for path, _ in leaves(filled({part: METRICS[part]}, itertools.count(100))) for key in path if isinstance(key, str)}  # fmt: skip
    assert {key for key in keys if f"`{key}`" not in text} == set()
