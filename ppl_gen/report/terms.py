"""Terms of a page as links to its glossary, and numbers as a page writes them."""

import re
from collections.abc import Iterator

from markupsafe import Markup, escape

from ppl_gen.core.glossary import TERMS, Term
from ppl_gen.core.tables import named

_COMMAND = re.compile(r"python -m ppl_gen\.\S+.*")
_THOUSANDS = re.compile(r"(?<![\w.,/])(?<!\w-)[1-9]\d{3,}(?![\w/]|-\w|\.[A-Za-z])")  # none in the name of a file
_CODE = re.compile("`([^`]+)`")
_WHOLE = re.compile(r"\b[Epq][(\[]\w+(, \w+)*( \| \w+(, \w+)*)?[)\]]|\(\w ‖ \w\)|\b\d+ %")
_MINUS = re.compile(r"(?<![\w)-])-(?=\d)")


def shown(text: str) -> str:
    """Text with commas between thousands, and with minus signs.

    >>> shown("of 10000 images: -1234.5")
    'of 10,000 images: −1,234.5'
    >>> shown("scans-2024.npz of 2020/images, 3000 images of 64 pixels")
    'scans-2024.npz of 2020/images, 3,000 images of 64 pixels'
    """
    text = _THOUSANDS.sub(lambda found: f"{int(found[0]):,}", text)
    return _MINUS.sub("−", text).replace(" - ", " − ")


class Terms:
    """Makes links of terms, and lists the terms of which a page has a link."""

    def __init__(self, quantity: str = "log p(x)") -> None:
        self.quantity = quantity
        """The name of log p(x), outside of definitions."""
        self.used: set[str] = set()
        """Anchors of the terms that are linked."""

    def link(self, text: object) -> Markup:
        """Text with a link at the first place of each term. Numbers are as in `shown`. A command stays as it is."""
        command = _COMMAND.search(str(text))
        if command is None:
            return self._linked(self.shown(text), self.used)
        before = self._linked(self.shown(str(text)[: command.start()]), self.used)
        return before + Markup("<code>{}</code>").format(command[0])

    def to(self, anchor: str, text: object) -> Markup:
        """Text as a whole as a link to a term."""
        self.used.add(anchor)
        return _anchor(anchor, self.shown(text))

    def shown(self, text: object) -> str:
        """Text as in `shown`, with the name of log p(x)."""
        return self.named(shown(str(text)))

    def named(self, text: str) -> str:
        """Text with the name of log p(x)."""
        return named(text, self.quantity)

    def entries(self) -> Iterator[tuple[Term, Markup]]:
        """The terms that the page uses, each with its definition, in which other terms of the page are links."""
        used = frozenset(self.used)
        for term in TERMS:
            if term.anchor in used:
                yield term, self._linked(term.text, set(), used - {term.anchor})

    def _linked(self, text: str, seen: set[str], only: frozenset[str] | None = None) -> Markup:
        """Text with links.

        :param seen: the anchors of the links are added to it.
        :param only: anchors of the terms that may be linked; None for all.
        """
        here: set[str] = set()
        parts: list[str] = []
        end = 0
        for found in _WORDS.finditer(text):
            anchor = _ANCHORS.get(found[0]) or _ANCHORS[found[0].lower()]
            if anchor in here or (only is not None and anchor not in only):
                continue
            here.add(anchor)
            parts += [_escaped(text[end : found.start()]), _anchor(anchor, found[0])]
            end = found.end()
        seen |= here
        return Markup("").join([*parts, _escaped(text[end:])])


def _escaped(text: str) -> Markup:
    """Text without markup; what is between backquotes is code. No line is broken within p(z | x) or 95 %."""
    code = _CODE.sub(r"<code>\1</code>", str(escape(text)))
    return Markup(_WHOLE.sub(r'<span class="piece">\g<0></span>', code))


def _anchor(anchor: str, text: str) -> Markup:
    return Markup('<a href="#{}">{}</a>').format(anchor, text)


def _pattern(word: str) -> str:
    """A word that no letter follows. Case counts in a short one and in one with capitals."""
    written = re.escape(word)
    written = f"(?i:{written})" if word.islower() and len(word) > 3 else written
    return written + (r"(?![\w-])" if word[-1].isalnum() else "")


def _any(words: list[str]) -> str:
    """Any of these words; the longest, where several begin at one place."""
    return "|".join(_pattern(word) for word in sorted(words, key=len, reverse=True))


_OTHERS = {"density"}  # words with another meaning, too: the density of a guide
_ANCHORS = {word: term.anchor for term in TERMS for word in (term.name, *term.words) if word not in _OTHERS}
_SIGNS = [word for word in _ANCHORS if not word[0].isalnum()]
# Within a word, one look back ends the search, not one for each term.
_WORDS = re.compile(rf"(?<![\w-])(?:{_any([word for word in _ANCHORS if word not in _SIGNS])})|{_any(_SIGNS)}")
