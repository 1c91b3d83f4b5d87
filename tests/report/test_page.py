"""Templates: everything that they are given is escaped."""

import base64
import hashlib
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from pages import Page, check

from ppl_gen.core.errors import BadInput
from ppl_gen.figures.captions import Caption
from ppl_gen.report import page
from ppl_gen.report.page import Picture, encoded, render

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


def test_a_path_that_is_no_text() -> None:
    assert encoded("a \udcff b") == b"a ? b"


def test_a_page_runs_its_own_script_alone_and_loads_nothing() -> None:
    script = Path(page.__file__).with_name("explorer.js").read_bytes()
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    (policy,) = (
        dict(rule.split(" ", 1) for rule in str(meta["content"]).split("; "))
        for meta in Page(render("comparison.html.jinja", **COMPARISON)).of("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy["default-src"] == "'none'" and policy["script-src"] == f"'sha256-{digest}'"
    assert policy["img-src"] == "data:" and policy["base-uri"] == policy["form-action"] == "'none'"


@pytest.mark.parametrize("content", [b"", PNG[:20], b"root:x:0:0:" + bytes(40), b"GIF89a" + bytes(40)])
def test_no_picture(content: bytes) -> None:
    with pytest.raises(BadInput, match=r"no \.png file"):
        Picture.of(content, Caption("a", "b"))
