"""The command line: options from dataclasses, errors in one line, exit statuses."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput, Failed

Call = Callable[..., tuple[int, str, str]]


@dataclass
class Options:
    """Options of a test."""

    learning_rate: float = 0.1
    hidden_dims: tuple[int, ...] = (3,)
    train_size: int | None = None


def _parse(*arguments: str) -> Options:
    return cli.parse(Options, list(arguments), "python -m ppl_gen.test", "A test.")


def test_options() -> None:
    assert _parse("--learning-rate", "2", "--hidden-dims", "4", "5") == Options(2.0, (4, 5))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning-rate", "fast"], ["--learning-rate", "fast"]),
        (["--lr", "1"], ["--lr", "did you mean --learning-rate?"]),
        (["--learning-rat", "1"], ["--learning-rat", "did you mean --learning-rate?"]),
        (["--hidden-dims", "a"], ["--hidden-dims", "a"]),
        (["--train-size", "none"], ["--train-size: must be INT, not 'none' (see"]),
    ],
)
def test_errors_are_one_line(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(BadInput) as error:
        _parse(*arguments)
    sentence = error.value.sentence
    assert all(word in sentence for word in words) and sentence.endswith("(see python -m ppl_gen.test --help)")
    assert "\n" not in sentence and "│" not in sentence


@pytest.mark.parametrize(
    ("raised", "status", "on_stderr"),
    [
        (None, 0, ""),
        (BadInput("--seed -1:\n  must be positive"), 2, "error: --seed -1: must be positive\n"),
        (Failed("a lower --learning-rate may help"), 1, "error: a lower --learning-rate may help\n"),
        (KeyboardInterrupt("continue with: this"), 1, "interrupted: continue with: this\n"),
        (KeyboardInterrupt(), 1, "interrupted: run the same command again\n"),
    ],
)
def test_exit_statuses(call: Call, raised: BaseException | None, status: int, on_stderr: str) -> None:
    def command(arguments: list[str]) -> None:
        print(*arguments)
        if raised is not None:
            raise raised

    assert call(command, "--here") == (status, "--here\n", on_stderr)


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(arguments: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.main(command)


def test_one_process(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes, only a command that can share its work runs."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setitem(os.environ, "RANK", "0")
    status, out, err = call(print)
    assert (status, out) == (
        2,
        "",
    ) and err == "error: torchrun: only fit and evaluate can run in several processes; start this command without it\n"


def test_memory_that_does_not_suffice(call: Call) -> None:
    """The largest numbers of the command line are named."""

    def command(arguments: list[str]) -> None:
        raise MemoryError

    status, _, err = call(command, "vae", "--seed", "99999", "--num-particles", "5000", "--hidden-dims", "3", "70000")
    assert status == 1 and err.count("\n") == 1
    assert "a smaller --hidden-dims than 70000 or --num-particles than 5000" in err
    assert "choose smaller sizes" in call(command, "vae")[2]
