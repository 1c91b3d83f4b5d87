"""Progress: plain lines where standard error is no terminal, a bar on one, nothing if quiet."""

import io
import re
import sys

import pytest

from ppl_gen.core import progress as progress_module
from ppl_gen.core.progress import Progress, skip


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


def test_the_remaining_time_leaves_out_what_was_done_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """800 of 1,000 images are there. The next 20 take 10 seconds: 90 seconds are left, not 2."""
    clock = iter([0.0, 10.0, 10.0])
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: next(clock))
    with Progress(1000, "image") as progress:
        advance = progress.advancing("log p(x)", "5 samples")
        skip(advance, 800)
        advance(20)
    assert capsys.readouterr().err == "log p(x)  5 samples  10 s, 90 s left\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10, "image", done=4) as progress:
        progress.note("epoch 1", "elbo -3.00")
        progress.advance(3)
        skip(progress.advancing("epoch 2", ""), 2)
        progress.note("epoch 2")
    assert "4/10" in stream.getvalue() and "9/10" in stream.getvalue() and "\n" not in stream.getvalue()


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, "image", quiet=True) as progress:
        progress.advance()
        progress.note("epoch 1")
    assert capsys.readouterr() == ("", "")
