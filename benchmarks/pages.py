"""Tables of the documentation as numbers, so that a figure can be drawn from a table without measuring again."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def tables(docs: Path = DOCS) -> list[list[list[str]]]:
    """All tables of the pages: rows of cells, the first row of which is the header. Links, bold type and typographic
    minus signs are made plain."""
    found = []
    for page in sorted(docs.glob("*.md")):
        for block in re.findall(r"(?:^\|.*\|$\n?)+", page.read_text(encoding="utf-8"), re.MULTILINE):
            rows = [[_plain(cell) for cell in line.strip("|").split("|")] for line in block.splitlines()]
            found.append([row for row in rows if not all(set(cell) <= set("-: ") and cell for cell in row)])
    return found


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
