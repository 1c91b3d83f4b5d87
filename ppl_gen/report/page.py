"""Pages from templates. All content is escaped. Style, script and pictures are in the page."""

import hashlib
import shlex
import struct
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ppl_gen.core.errors import BadInput
from ppl_gen.figures.captions import Caption
from ppl_gen.report.terms import Terms

_HERE = Path(__file__).parent
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A picture as a page holds it: a PNG with its size in pixels."""

    width: int
    height: int
    base64: str
    caption: Caption

    @classmethod
    def of(cls, png: bytes, caption: Caption) -> "Picture":
        """A picture from the content of a .png file. Raises `BadInput` if it is none."""
        if png[:8] != _SIGNATURE or len(png) < 24:
            raise BadInput("is no .png file")
        width, height = struct.unpack(">II", png[16:24])
        return cls(width, height, b64encode(png).decode(), caption)

    def __repr__(self) -> str:
        return f"<{self.width} x {self.height} pixels: {self.caption.text}>"

    def _repr_html_(self) -> str:
        return render("picture.html.jinja", picture=self)


class Gallery(dict[str, Picture]):
    """Pictures by name. A notebook shows all of them."""

    def _repr_html_(self) -> str:
        return "\n".join(picture._repr_html_() for picture in self.values())


def render(template: str, quantity: str = "log p(x)", **content: Any) -> str:
    """The text of a page.

    :param template: name of a template in this folder. `content` are its variables. It has `terms`,
        which makes links to the glossary of the page and has its entries, and `link` and `shown` as well.
    :param quantity: the name of log p(x) on the page. Its glossary defines log p(x) itself.
    """
    terms = Terms(quantity)
    return _environment().get_template(template).render(content, terms=terms, link=terms.link, shown=terms.shown)


def encoded(text: str) -> bytes:
    """The bytes of a page. Bytes of a path that are no characters are replaced."""
    return text.encode("utf-8", "replace")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    environment.globals["file"] = _file
    environment.globals["policy"] = _policy()
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment


def _policy() -> str:
    """What a browser may do for a page: show its pictures in its style, and run the script of the explorer. It runs no
    other script and loads nothing."""
    digest = b64encode(hashlib.sha256(_file("explorer.js").encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _file(name: str) -> Markup:
    """The content of a file of this folder, without escaping."""
    return Markup((_HERE / name).read_text(encoding="utf-8"))
