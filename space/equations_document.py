"""The rows of docs/EQUATIONS.md, as data and as Markdown, in one language.

The document holds both languages. A heading, a column's title and a cell are either the same in both, or they are
`English / 中文`; a " / " inside a formula or code does not count. A paragraph is in one language: a Chinese one has
Chinese characters.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_PLACES = (_FOLDER / "docs" / "EQUATIONS.md", _FOLDER.parent / "docs" / "EQUATIONS.md")
# On the Hub it lies below this file, in a checkout beside this folder.
DOCUMENT = next((place for place in _PLACES if place.is_file()), _PLACES[0])

LANGUAGES = ("en", "zh")

_EQUATION = {"en": "equation", "zh": "公式"}
_COLON = {"en": ": ", "zh": "："}
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_WHOLE = re.compile(r"(\$[^$]*\$|`[^`]*`)")  # what is never split: a formula, code
_FORMULA_AT_THE_END = re.compile(r"(?:(.*:) )?\$([^$]*)\$")


@dataclass(frozen=True)
class Section:
    """A heading with the paragraphs before its table, the table, and the paragraphs after it."""

    title: str
    paragraphs: list[str]
    columns: list[str]
    rows: list[list[str]]
    remarks: list[str]


def sections(language: str) -> list[Section]:
    """The document's sections in one language; the first has no table.

    Raises:
        ValueError: if the language is not one of `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise ValueError(f"`language` is {language!r}; it must be one of {', '.join(map(repr, LANGUAGES))}.")
    text = DOCUMENT.read_text(encoding="utf-8")
    return [_section(part, language) for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]]


def markdown(language: str) -> str:
    """The document as Markdown for a narrow page: a block for every row, formulas between `$` and `$$`."""
    first, *others = sections(language)
    blocks = [f"## {first.title}", *first.paragraphs]
    for section in others:
        block = _equation if section.columns[1] == _EQUATION[language] else _slip
        blocks += [f"### {section.title}", *section.paragraphs]
        blocks += [block(section.columns, row, _COLON[language]) for row in section.rows]
        blocks += section.remarks
    return "\n\n".join(blocks) + "\n"


def _section(text: str, language: str) -> Section:
    title, *blocks = re.split(r"\n\s*\n", text.strip())
    before, table, after = [], [], []
    for block in blocks:
        if block.startswith("|"):
            table = [_cells(line, language) for line in block.splitlines()]
        elif _spoken(block) == language:
            (after if table else before).append(block)
    columns, rows = (table[0], table[2:]) if table else ([], [])
    return Section(_in_language(title, language), before, columns, rows, after)


def _cells(line: str, language: str) -> list[str]:
    return [_in_language(cell.strip(), language) for cell in line.split("|")[1:-1]]


def _in_language(text: str, language: str) -> str:
    halves = _split(text, " / ")
    return halves[LANGUAGES.index(language)] if len(halves) == 2 else text


def _spoken(paragraph: str) -> str:
    return "zh" if _CHINESE.search(paragraph) else "en"


def _split(text: str, separator: str) -> list[str]:
    pieces = [""]
    for number, part in enumerate(_WHOLE.split(text)):
        first, *others = [part] if number % 2 else part.split(separator)
        pieces[-1] += first
        pieces += others
    return pieces


def _equation(columns: list[str], row: list[str], colon: str) -> str:
    name, equation, *facts = row
    lines = [_displayed(part) for part in _split(equation, "; ")]
    small = "<br>".join(f"{column}{colon}{fact}" for column, fact in zip(columns[2:], facts, strict=True))
    return "\n\n".join([f"#### {name}", *lines, f"<small>{small}</small>"])


def _displayed(part: str) -> str:
    """The formula that ends this part of a cell on a line of its own; other text as it is."""
    if match := _FORMULA_AT_THE_END.fullmatch(part):
        words, formula = match.groups()
        return f"{words}\n\n$${formula}$$" if words else f"$${formula}$$"
    return part


def _slip(columns: list[str], row: list[str], colon: str) -> str:
    items = [f"- **{column}**{colon}{cell}" for column, cell in zip(columns[1:], row[1:], strict=True)]
    return "\n".join([f"#### {row[0]}", "", *items])
