"""Signals: one line, and nothing lost, in every phase of a command."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ppl_gen
from ppl_gen.core import interrupts

Call = Callable[..., tuple[int, str, str]]
AGAIN = "interrupted: run the same command again\n"
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(ppl_gen.__file__).parents[1])}

# A command whose phases say where they are, and wait for signals.
PHASES = """
import atexit, sys, time
from ppl_gen.core import cli, interrupts

def wait(phase):
    print(phase, flush=True)
    exec("time.sleep(30)")  # after an interrupt of a text that it executes, Python ends by the signal if it may

def command(arguments):
    try:
        with interrupts.interrupts() as interrupted:
            print("training", flush=True)
            while not interrupted.is_set():
                time.sleep(0.01)
            if "more" in arguments:
                wait("more")
        print("saved", flush=True)
        wait("evaluation")
    finally:
        if "stuck" in arguments:
            wait("stuck")

atexit.register(lambda: print("leaving", flush=True) or time.sleep(0.2))
cli.main(command)
"""


def sent(words: list[str], signals: dict[str, signal.Signals]) -> tuple[int, list[str], str]:
    """Run Python, and send it a signal when it says a word. Returns its exit status, the words, and standard error."""
    with subprocess.Popen(
        [sys.executable, *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        said, limit = [], threading.Timer(60, process.kill)
        limit.start()
        for line in process.stdout:
            said.append(line.strip())
            if said[-1] in signals:
                process.send_signal(signals[said[-1]])
        limit.cancel()
        return process.wait(), said, process.stderr.read()


@pytest.mark.parametrize(
    ("words", "signals", "said"),
    [
        ([], {"training": signal.SIGINT, "evaluation": signal.SIGTERM}, ["training", "saved", "evaluation", "leaving"]),
        (
            [],
            {"training": signal.SIGHUP, "evaluation": signal.SIGHUP, "leaving": signal.SIGINT},
            ["training", "saved", "evaluation", "leaving"],
        ),
        (["more"], {"training": signal.SIGTERM, "more": signal.SIGINT}, ["training", "more", "leaving"]),
        (
            ["more", "stuck"],
            {"training": signal.SIGINT, "more": signal.SIGINT, "stuck": signal.SIGINT},
            ["training", "more", "stuck"],
        ),
    ],
)
def test_one_line_for_one_signal_or_several(
    elsewhere: Path, words: list[str], signals: dict[str, signal.Signals], said: list[str]
) -> None:
    """The first ends a step in order, the second raises an interrupt, the third ends the process at once."""
    Path("phases.py").write_text(PHASES, encoding="utf-8")
    assert sent(["-m", "phases", *words], signals) == (1, said, AGAIN)


@pytest.mark.parametrize("module", ["ppl_gen.fit", pytest.param("ppl_gen", marks=pytest.mark.attack)])
def test_a_signal_during_import(elsewhere: Path, module: str) -> None:
    """Where a module that the command imports takes long. Nothing is begun then, and nothing is left."""
    Path("torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(30)\n")
    words = [*(["fit"] if module == "ppl_gen" else []), "vae", "--out", "run"]
    for number in SIGNALS:
        status, said, err = sent(["-m", module, *words], {"importing": number})
        assert (status, said, err) == (1, ["importing"], AGAIN)
    assert [path.name for path in elsewhere.iterdir() if path.name != "__pycache__"] == ["torch.py"]


DROPPED = """
import sys, time
from ppl_gen.core import cli

class Slow:
    def __del__(self):
        print("deleting", flush=True)
        time.sleep(30)

def command(arguments):
    slow = Slow()
    del slow
    print("deleted", flush=True)
    time.sleep(30)

cli.main(command)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_where_python_drops_exceptions(elsewhere: Path, number: signal.Signals) -> None:
    """In `__del__`: the signal comes again right after it."""
    Path("dropped.py").write_text(DROPPED, encoding="utf-8")
    status, said, err = sent(["-m", "dropped"], {"deleting": number})
    assert (status, said[0], err) == (1, "deleting", AGAIN)


def test_ignored_signals_stay_ignored() -> None:
    """SIGHUP under nohup, and Ctrl-C of a command in the background of a script."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        with interrupts.interrupts() as interrupted:
            interrupts.raise_once()
            for number in SIGNALS:
                os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert not interrupted.is_set()
            assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_second_signal_while_the_first_is_handled() -> None:
    """Of several processes, which torchrun sends every signal twice, none ends before its checkpoint."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with interrupts.interrupts(shared=True) as interrupted:
        for number in 10 * SIGNALS:
            os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert interrupted.is_set()
    assert before == {number: signal.getsignal(number) for number in SIGNALS}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_keeps_no_run_is_to_be_run_again(call: Call, number: int) -> None:
    def command(arguments: list[str]) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    assert call(command) == (1, "", AGAIN)
