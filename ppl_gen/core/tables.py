"""Tables of figures with standard errors, as text and as HTML."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_HTML = """\
<table>
<caption style="text-align: left">{{ caption }}</caption>
<thead><tr><th>quantity</th><th>nats</th><th>± s.e.</th><th></th></tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row" style="text-align: left{{ '; padding-left: 2em' if row.label.startswith(' ') }}">
{{- row.label.strip() }}</th>
{%- if row.mean %}<td>{{ 'at least ' if row.at_least }}{{ row.mean }}</td><td>{{ '± ' ~ row.se if row.se }}</td>
{%- else %}<td></td><td></td>{% endif -%}
<td style="text-align: left">{{ row.note }}</td></tr>
{% endfor %}
</tbody>
</table>
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
"""


@dataclass(frozen=True)
class Row:
    """A row of a table: a label, a figure with its standard error, and a note; or a label and a note alone."""

    label: str
    """Label, indented if the row is a term of the row above."""
    mean: str = ""
    se: str = ""
    note: str = ""
    at_least: bool = False

    @classmethod
    def of(cls, label: str, mean: float | None, se: float | None, note: str = "", at_least: bool = False) -> "Row":
        """A row of a figure with two digits. A standard error that is NaN or infinite is left out."""
        return cls(label, fixed(mean), "" if se is None or not math.isfinite(se) else fixed(se), note, at_least)


def named(text: str, quantity: str) -> str:
    """A text in which log p(x) has the name of what is evaluated.

    >>> named("gap: log p(x) - ELBO", "log p(x_obs | y)")
    'gap: log p(x_obs | y) - ELBO'
    """
    return text.replace("log p(x)", quantity)


def fixed(value: float | None, digits: int = 2) -> str:
    """Format a number with `digits` digits after the point. None, which stands for NaN in JSON, becomes `nan`."""
    text = f"{math.nan if value is None else value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def small(value: float | None) -> str:
    """Format a number with two digits after the point, or with four if it is below a hundredth."""
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.4f}" if abs(value) < 0.01 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Format a time in words.

    >>> duration(0.4), duration(12.3)
    ('less than a second', '12 s')
    """
    return f"{seconds:.0f} s" if seconds >= 0.5 else "less than a second"


def line(row: Row, width: int = 22, value: str = "{:>9}{:>9}{}") -> str:
    """Format a row as an indented line of text.

    :param width: width of the label.
    :param value: format of "at least", the mean and the error.
    """
    if not row.mean:
        return f"  {row.label:<{width}} {row.note}".rstrip()
    figure = value.format("at least" if row.at_least else "", row.mean, f" ± {row.se}" if row.se else "")
    return f"  {row.label:<{width}}{figure:<28}{row.note}".rstrip()


def sentence(row: Row) -> str:
    """Format a row as text without columns after the label."""
    parts = ("at least" if row.at_least else "", row.mean, f"± {row.se}" if row.se else "", row.note)
    return f"{row.label:<10}{' '.join(part for part in parts if part)}"


def html(caption: str, rows: Iterable[Row], notes: Sequence[str] = ()) -> str:
    """Format rows as the HTML table that a notebook shows. All text is escaped."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(_HTML)
    return template.render(caption=caption, rows=list(rows), notes=notes)
