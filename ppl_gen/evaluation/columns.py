"""The table of a comparison: its columns, and its text."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ppl_gen.core.tables import named
from ppl_gen.evaluation.rows import Row, RowMean
from ppl_gen.evaluation.table import shown
from ppl_gen.experiment.run_directory import Json


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    heading: str
    """Title of the column. In `COLUMNS`, `{k}` stands for the k of the IWAE bound."""
    cells: Callable[[Sequence[Row]], list[str]]
    """Function that returns the cell of each row; empty for a term that does not exist."""
    words: bool = False
    """True for words, which are aligned on the left; False for numbers."""
    lift: bool = False
    """True if a value that all rows share stands once, above the table."""


def _text(of: Callable[[Row], str]) -> Callable[[Sequence[Row]], list[str]]:
    return lambda rows: [of(row) for row in rows]


def _name(of: Callable[[Row], str]) -> Callable[[Sequence[Row]], list[str]]:
    """Cells of names in their short form. Different names with the same short form are shown in full."""

    def cells(rows: Sequence[Row]) -> list[str]:
        names = Counter(shown(name) for name in {of(row) for row in rows})
        return [shown(of(row)) if names[shown(of(row))] == 1 else of(row) for row in rows]

    return cells


def _number(of: Callable[[Row], float | None], form: str) -> Callable[[Sequence[Row]], list[str]]:
    return lambda rows: ["" if (value := of(row)) is None else format(value, form) for row in rows]


def _errors(mean: RowMean, digits: int) -> list[str]:
    """The errors of a mean over images and over seeds. One image has no error: a dash keeps its place."""
    if mean.se is None and mean.se_seeds is None:
        return []
    found = [mean.se] if mean.se_seeds is None else [mean.se, mean.se_seeds]
    return ["–" if error is None else f"{error:.{digits}f}" for error in found]


def _nats(of: Callable[[Row], RowMean], sign: str = "", errors: bool = True) -> Callable[[Sequence[Row]], list[str]]:
    """Cells of means with their errors and intervals. They have three digits if an error is below 0.01 nats."""

    def cells(rows: Sequence[Row]) -> list[str]:
        means = [of(row) for row in rows]
        small = [error for mean in means for error in (mean.se, mean.se_seeds) if error]
        digits = 3 if errors and small and min(small) < 0.0095 else 2
        texts = []
        for mean in means:
            shown = [] if mean.mean is None else [f"{mean.mean:{sign}.{digits}f}"]
            shown += _errors(mean, digits) if errors else []
            cell = ("≥ " if shown and mean.at_least else "") + " ± ".join(shown)
            if mean.low is not None:
                cell += f" [{mean.low:+.{digits}f}, {mean.high:+.{digits}f}]"
            if mean.paired is False:
                cell += " unpaired"
            texts.append(cell)
        return texts

    return cells


def _bits(of: Callable[[Row], RowMean]) -> Callable[[Sequence[Row]], list[str]]:
    """Cells of means in bits per dimension with their errors. A lower bound in nats is an upper bound in bits."""

    def cell(mean: RowMean) -> str:
        parts = [] if mean.mean is None else [f"{mean.mean:.3f}", *_errors(mean, 3)]
        return ("≤ " if parts and mean.at_least else "") + " ± ".join(parts)

    return lambda rows: [cell(of(row)) for row in rows]


COLUMNS = (
    Column("model", _name(lambda row: row.model), words=True, lift=True),
    Column("guide", _name(lambda row: row.guide or ""), words=True, lift=True),
    Column("prior", _name(lambda row: row.prior or "-"), words=True, lift=True),
    Column("objective", _name(lambda row: row.objective), words=True, lift=True),
    Column("options", _text(lambda row: written(row.options)), words=True),
    Column("seeds", _text(lambda row: str(len(row.seeds))), lift=True),
    Column("ELBO", _nats(lambda row: row.elbo, errors=False)),
    Column("L_{k}", _nats(lambda row: row.iwae, errors=False)),
    Column("log p(x)", _nats(lambda row: row.log_px)),
    Column("bits/dim", _bits(lambda row: row.bits_per_dim)),
    Column("S", _text(lambda row: str(row.settings["num_samples"] or row.settings["estimator"])), lift=True),
    Column("Δ log p(x)", _nats(lambda row: row.log_px_difference, "+")),
    Column("Δ ELBO", _nats(lambda row: row.elbo_difference, "+")),
    Column("gap", _nats(lambda row: row.gap, errors=False)),
    Column("approx.", _nats(lambda row: row.approximation, errors=False)),
    Column("amort.", _nats(lambda row: row.amortization, errors=False)),
    Column("width", _number(lambda row: row.width_importance, ".3f")),
    Column("AIS width", _number(lambda row: row.width_annealed, ".3f")),
    Column("k-hat", _number(lambda row: row.khat_median, ".2f")),
    Column("ESS", _number(lambda row: row.ess_median, ".1f")),
    Column("units", _number(lambda row: row.active_units, ".3g")),
    Column("calibration", _text(lambda row: row.calibration or "")),
    Column("params", _number(lambda row: row.num_parameters, ",d"), lift=True),
    Column("seconds", _number(lambda row: row.seconds, ".0f")),
    Column("epochs", _number(lambda row: row.epochs, "g"), lift=True),
)


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of a table. Those of the user's own estimators follow the differences of the package's."""
    found = []
    for column in COLUMNS:
        found.append(replace(column, heading=column.heading.format(k=rows[0].k)))
        if column.heading == "Δ ELBO":
            found += [each for name in dict.fromkeys(name for row in rows for name in row.own) for each in _own(name)]
    return found


def _own(name: str) -> list[Column]:
    """The columns of an estimator of the user's own."""
    value = _nats(lambda row: row.own.get(name, RowMean()))
    change = _nats(lambda row: row.own_difference.get(name, RowMean()), "+")
    return [Column(f"log p(x) by {name}", value), Column(f"Δ log p(x) by {name}", change)]


def written(options: Json) -> str:
    """Options as one word each: `latent_dim=2 guide.transform=iaf`."""

    def value(of: Any) -> str:
        return "none" if of is None else ",".join(map(str, of)) if isinstance(of, list) else str(of)

    return " ".join(f"{name}={value(of)}" for name, of in options.items())


class Layout(NamedTuple):
    """The cells of a table, without blank columns."""

    common: dict[str, str]
    """Values that all rows share, by heading."""
    columns: dict[str, list[str]]
    """The cells of the other columns, by heading."""
    words: set[str]
    """Headings of columns of words."""


def layout(rows: Sequence[Row], quantity: str = "log p(x)") -> Layout:
    """The cells of a comparison as text.

    :param quantity: the name of log p(x).
    """
    table = Layout({}, {}, set())
    for column in _columns(rows):
        heading, cells = named(column.heading, quantity), column.cells(rows)
        if set(cells) <= {"", "-"}:
            continue
        if len(rows) > 1 and column.lift and len(set(cells)) == 1:
            table.common[heading] = cells[0]
            continue
        table.columns[heading] = cells
        if column.words:
            table.words.add(heading)
    return table


def labels(rows: Sequence[Row]) -> list[str]:
    """A label for each row in a figure: the words that differ between the rows."""
    table = layout(rows)
    telling = [cells for heading, cells in table.columns.items() if heading in table.words]
    names = [", ".join(cell for cell in cells if cell not in ("", "-")) for cells in zip(*telling, strict=True)]
    names = names or [row.model for row in rows]
    return [
        f"{name} ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def text(table: Layout) -> list[str]:
    """The lines of a table as text, headings first, columns aligned."""
    return ["  ".join(cells).rstrip() for cells in _aligned(table)]


def markdown(table: Layout) -> list[str]:
    """The lines of a table in Markdown, columns aligned in the source, too."""
    columns = {heading: [cell.replace("|", "\\|") for cell in cells] for heading, cells in table.columns.items()}
    first, *others = _aligned(table._replace(columns=columns))
    rule = [
        "-" * len(cell) if heading in table.words else "-" * (len(cell) - 1) + ":"
        for heading, cell in zip(columns, first, strict=True)
    ]
    return [f"| {' | '.join(cells)} |" for cells in (first, rule, *others)]


def _aligned(table: Layout) -> list[tuple[str, ...]]:
    """The cells row by row, headings first, padded to the width of their column."""
    padded = []
    for heading, cells in table.columns.items():
        column = [heading, *cells]
        width = max(map(len, column))
        padded.append([each.ljust(width) if heading in table.words else each.rjust(width) for each in column])
    return list(zip(*padded, strict=True))
