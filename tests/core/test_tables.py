"""Tables of figures: numbers as text, rows as lines, HTML."""

import math

import pytest

from ppl_gen.core.tables import Row, fixed, html, line, sentence, small


@pytest.mark.parametrize(
    ("value", "text"), [(1.234, "1.23"), (-0.001, "0.00"), (-1.5, "-1.50"), (None, "nan"), (math.inf, "inf")]
)
def test_fixed(value: float | None, text: str) -> None:
    assert fixed(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.50"), (0.00123, "0.0012"), (None, "unknown"), (math.nan, "unknown")]
)
def test_small(value: float | None, text: str) -> None:
    assert small(value) == text


def test_rows() -> None:
    row = Row.of("log p(x)", -27.207, 0.19, "S = 30", at_least=True)
    assert row == Row("log p(x)", "-27.21", "0.19", "S = 30", True)
    assert line(row).split() == ["log", "p(x)", "at", "least", "-27.21", "±", "0.19", "S", "=", "30"]
    assert sentence(row) == "log p(x)  at least -27.21 ± 0.19 S = 30"
    # A standard error of one image, or of values that are not finite, is none.
    assert [Row.of("ELBO", -3.0, se).se for se in (None, math.nan, math.inf)] == ["", "", ""]
    assert line(Row("units", note="2 of 20")) == f"  {'units':<22} 2 of 20"


def test_html_is_escaped() -> None:
    assert "<b>" not in html("<b>", [Row("<b>", "<b>", "<b>", "<b>")], ["<b>"])
