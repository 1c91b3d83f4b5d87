"""Pages of HTML as a test reads them."""

import re
import shlex
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

from ppl_gen.core.glossary import TERMS

VOID = {"img", "meta"}


class Page(HTMLParser):
    """What a page holds. Every element but the void ones is to be closed, in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.classes: list[str | None] = []
        """The classes of the open elements."""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        """All the text in elements of a kind."""
        self.python = ""
        """The calls of Python, which are code too."""
        self.caption = ""
        assert text.startswith("<!DOCTYPE html>\n<html lang=")
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs) and all(value for _, value in attrs), attrs
        if tag not in VOID:
            self.open.append(tag)
            self.classes.append(dict(attrs).get("class"))
        if tag == "table":
            self.caption = ""
        elif tag == "tr":
            self.tables.setdefault(self.caption, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.classes.pop()

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + data
        if "python" in self.classes:
            self.python += data
        if "caption" in self.open:
            self.caption += data
        elif {"td", "th"} & set(self.open) and "heading" not in self.classes:  # a cell has its heading on a phone
            self.tables[self.caption][-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def commands(self, module: str) -> list[list[str]]:
        """The arguments of each command of a module, as a shell reads them."""
        typed = [line for line in self.texts["code"].splitlines() if line.startswith("python ")]
        lines = [shlex.split(line, comments=True) for line in typed]
        return [words[3:] for words in lines if words[:3] == ["python", "-m", f"ppl_gen.{module}"]]

    def warnings(self) -> list[str | None]:
        return [attributes["class"] for attributes in self.of("p") if attributes.get("class") == "warning"]


def plain(text: str) -> str:
    """Text with numbers as a table in a terminal has them, without the minus signs and the commas of a page."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", text).replace("−", "-")


def check(page: Page) -> None:
    """What every page keeps to."""
    tags = [tag for tag, _ in page.elements]
    assert not {"link", "iframe", "object", "b"} & set(tags)
    assert not any({"src", "onload", "onclick"} & set(attributes) for tag, attributes in page.elements if tag != "img")
    assert tags.count("h1") == tags.count("title") == tags.count("main") == 1
    assert page.of("meta")[0] == {"charset": "utf-8"} and "width=device-width" in str(page.of("meta")[1]["content"])
    assert page.of("meta")[2]["http-equiv"] == "Content-Security-Policy"
    for picture in page.of("img"):
        assert str(picture["src"]).startswith("data:image/png;base64,") and len(str(picture["alt"])) > 10
    check_terms(page)
    assert "url(" not in page.texts["style"] and "@import" not in page.texts["style"]
    assert tags.count("table") == tags.count("caption") and all(page.tables)
    assert all(header["scope"] in ("row", "col") for header in page.of("th"))
    assert tags.count("figure") == tags.count("img") == tags.count("figcaption") > 0


def ids(page: Page) -> set[str]:
    """The names of the elements that links may lead to."""
    return {str(attributes["id"]) for _, attributes in page.elements if "id" in attributes}


def check_terms(page: Page) -> None:
    """Every link leads to an entry of the page's glossary, every entry is linked, and each has its definition."""
    assert {tag for tag, attributes in page.elements if "href" in attributes} <= {"a"}
    links = {str(link["href"]) for link in page.of("a")}
    assert sum("id" in attributes for _, attributes in page.elements) == len(ids(page))
    terms = [term for term in TERMS if term.anchor in ids(page)]
    assert links == {f"#{term.anchor}" for term in terms}
    assert len(page.of("dt")) == len(page.of("dd")) == len(terms)
    for term in terms:
        assert term.text.replace("`", "") in page.texts["dd"]


# In a browser --------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def overflow(text: str, width: int, folder: Path) -> int:
    """By how many pixels a page is wider than a window of `width`."""
    return measured(text, width, folder, "d.documentElement.scrollWidth - f.contentWindow.innerWidth")


def rightmost(text: str, width: int, folder: Path, selector: str) -> int:
    """The place, in pixels from the left, at which the last of some elements ends in a window of `width`."""
    edges = f"[...d.querySelectorAll('{selector}')].map(each => each.getBoundingClientRect().right)"
    return measured(text, width, folder, f"Math.round(Math.max(...{edges}))")


def measured(text: str, width: int, folder: Path, of: str) -> int:
    """A number that JavaScript computes `of` a page in a window of `width`: `d` is the document, `f` its frame."""
    assert BROWSER is not None
    measure = escape(f"const d = f.contentDocument; document.title = {of}")
    frame = f'<iframe id="f" style="width: {width}px" srcdoc="{escape(text)}" onload="{measure}"></iframe>'
    (folder / "frame.html").write_text(f"<!DOCTYPE html><title>none</title>{frame}", encoding="utf-8")
    options = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
        f"--disable-sync --virtual-time-budget=20000 --dump-dom --user-data-dir={folder / 'profile'}"
    )
    command = [BROWSER, *shlex.split(options), (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(-?\d+)</title>", done.stdout)
    assert found, done.stderr
    return int(found[1])
