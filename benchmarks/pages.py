"""Tables of the documentation: as text, and as numbers, so that a figure can be drawn from a table without measuring
again."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def tables(docs: Path = DOCS) -> list[list[list[str]]]:
    """All tables of the pages: rows of cells, the first row of which is the header. Links, bold type and typographic
    minus signs are made plain."""
    return [found for page in sorted(docs.glob("*.md")) for found in tables_of(page.read_text(encoding="utf-8"))]


def tables_of(text: str) -> list[list[list[str]]]:
    """The same of one text.

    >>> tables_of(markdown(["", "log p(x)"], [["`one`", "−2.50"]]))
    [[['', 'log p(x)'], ['one', '-2.50']]]
    """
    found = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        rows = [[_plain(cell) for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append([row for row in rows if not all(set(cell) <= set("-: ") and cell for cell in row)])
    return found


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as a page has it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(*header: str, docs: Path = DOCS) -> list[list[str]]:
    """The rows of the table whose header begins with these cells, the header included.

    :raises LookupError: if there is none.
    """
    for rows in tables(docs):
        if rows[0][: len(header)] == list(header):
            return rows
    raise LookupError(f"no table in {docs} begins with the columns {', '.join(header)}")


def numbers(cell: str) -> list[float]:
    """The numbers in a cell, such as the mean and the deviation of -142.13 ± 0.56."""
    return [float(each) for each in re.findall(r"-?\d[\d.]*", cell.replace(",", ""))]


def _plain(cell: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell.strip()).replace("−", "-").replace("**", "").replace("`", "")
