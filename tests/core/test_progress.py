"""Progress: plain lines where standard error is no terminal, a bar on one, nothing if quiet."""

import io
import re
import sys

import pytest

from ppl_gen.core.progress import Progress


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The remaining time counts from what this process has done."""
    with Progress(10, "image", done=4) as progress:
        progress.note("start")
        progress.advance(3)
        progress.note("epoch 1", "elbo -3.00")
        progress.note("too soon", every=60)
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert not out and first == "start"
    assert re.fullmatch(r"epoch 1  elbo -3\.00  \d+ s, \d+ s left", second)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10, "image", done=4) as progress:
        progress.note("epoch 1", "elbo -3.00")
        progress.advance(3)
    assert "4/10" in stream.getvalue() and "\n" not in stream.getvalue()


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "image", quiet=True) as progress:
        progress.advance()
        progress.note("epoch 1")
    assert capsys.readouterr() == ("", "")
