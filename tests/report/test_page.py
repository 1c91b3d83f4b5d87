"""Templates: everything that they are given is escaped."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError
from pages import Page, check

from ppl_gen.figures.captions import Caption
from ppl_gen.report.page import Picture, render, saving

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big")
ODD = "</td><script>alert(1)</script>&amp; \"'"
COMPARISON = {
    "title": ODD,
    "lead": ODD,
    "main": [ODD],
    "agreed": [(ODD, ODD)],
    "anchors": {"b": "nats"},
    "pieces": lambda cell: [cell],
    "warnings": [ODD],
    "headings": [ODD, "b"],
    "numbers": {"b"},
    "rows": [(ODD, ODD)],
    "notes": [ODD],
    "pictures": [Picture.of(PNG, Caption(ODD, ODD))],
    "again": [(f"a\n{ODD}", ["python", ODD]), ("made from Python", [])],
    "calls": [(ODD, ODD)],
}


def test_text_stays_text() -> None:
    page = Page(render("comparison.html.jinja", **COMPARISON))
    check(page)
    assert page.of("script") == []
    for tag in ("title", "h1", "p", "td", "th", "li", "figcaption", "span", "code"):
        assert '<script>alert(1)</script>&amp; "' in page.texts[tag], tag
    assert page.of("img")[0]["alt"] == ODD
    assert page.tables == {
        "Best log p(x) first; runs that differ in the seed alone share a row": [[ODD, "b"], [ODD] * 2]
    }
    assert page.of("td") == [{"class": "number"}]


def test_a_comment_is_one_line_and_a_word_one_word() -> None:
    page = Page(render("comparison.html.jinja", **COMPARISON))
    lines = page.texts["code"].splitlines()
    assert lines[0] == f"# a {ODD}" and lines[2:4] == ["", "# made from Python"] and page.texts["code"][0] == "#"
    assert lines[1] == "python '" + ODD.replace("'", "'\"'\"'") + "'"


def test_the_size_of_a_picture_is_in_its_style() -> None:
    picture = Picture.of(PNG, Caption("a", "b"))
    assert (picture.width, picture.height) == (640, 480)
    page = Page(render("comparison.html.jinja", **COMPARISON))
    assert page.of("figure") == [{"style": "--aspect: 1.33; --width: 640px"}]


def test_what_a_template_asks_for_is_there() -> None:
    with pytest.raises(UndefinedError, match="lead"):
        render("comparison.html.jinja", **{key: value for key, value in COMPARISON.items() if key != "lead"})


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    saving("a \udcff b")(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a ? b"
