"""Command lines as they are written, and as they are read again."""

import doctest
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ppl_gen.core import cli, commands
from ppl_gen.core.commands import external_class_options, fit_command, resuming_options, words
from ppl_gen.evaluate import Command
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.inference.annealed import Annealing


def test_the_examples() -> None:
    assert doctest.testmod(commands).failed == 0 and doctest.testmod(commands).attempted == 3


DEFAULTS = asdict(EvaluationOptions())


@pytest.mark.parametrize("defaults", [{}, DEFAULTS])
@pytest.mark.parametrize(
    "options",
    [
        EvaluationOptions(),
        EvaluationOptions(num_images=3, num_samples=50, split="validation", seed=7, gaps=True, gap_copies=0),
        EvaluationOptions(estimator="annealed", annealed=Annealing(num_chains=3, start="guide"), sandwich=0),
        EvaluationOptions(
            prior_share=0.25, temperature=1.5, proposals=(Path("a b"), Path("c")), proposal_guides=("m.py:M",)
        ),
    ],
)
def test_they_are_read_as_they_were_written(options: EvaluationOptions, defaults: dict[str, Any]) -> None:
    """By the command itself, with the defaults of its options left out or not."""
    written = words(asdict(options), defaults)
    assert cli.parse(Command, ["run", *written], "", "").options == options


def test_what_is_left_out() -> None:
    assert words(DEFAULTS, DEFAULTS) == []
    assert words(asdict(replace(EvaluationOptions(), seed=3)), DEFAULTS) == ["--seed", "3"]
    assert words({"a": None, "b": [], "c": ()}) == []
    assert words({"a": None, "b": ["1"]}, {"a": 1, "b": (1,)}) == []


def test_switches() -> None:
    assert words({"a_b": True, "c": {"d_e": False}}) == ["--a-b", "--c.no-d-e"]
    assert words({"a": False, "b": True}, {"a": False, "b": True}) == []
    assert words({"a": False, "b": 0, "c": 1}, {"a": True, "b": 1}) == ["--no-a", "--b", "0", "--c", "1"]


def test_classes_of_ones_own_are_named_again() -> None:
    config = {"model": "vae", "guide": "my.py:Mine", "prior": None}
    assert external_class_options(config) == ["--guide", "my.py:Mine"]
    more = {"training": {"objective": "o.py:O"}, "estimator": ["importance", "e.py:E", "e.py:f"]}
    again = ["--objective", "o.py:O", "--estimator", "e.py:E", "e.py:f"]
    assert resuming_options(config | more) == ["--guide", "my.py:Mine", *again]
    assert external_class_options({"model": "m.py:M", "prior": "p.py:P"}) == ["--model", "m.py:M", "--prior", "p.py:P"]


@pytest.mark.parametrize(
    ("made", "again"),
    [
        (["/x/fit.py", "vae"], ["vae", "--data", "digits"]),
        (["/x/fit.py", "vae", "--data=digits"], ["vae", "--data=digits"]),
        (["/x/fit.py", "vae", "--data", "digits", "--seed", "1"], ["vae", "--data", "digits", "--seed", "1"]),
    ],
)
def test_the_command_of_a_fit(made: list[str], again: list[str]) -> None:
    config = {"command": made, "data": {"data": "digits"}}
    assert fit_command(config) == ["python", "-m", "ppl_gen.fit", *again]
    assert config["command"] == made


@pytest.mark.parametrize("made", [None, [], ["study.py", "7"]])
def test_a_run_made_from_python_has_no_command(made: list[str] | None) -> None:
    assert fit_command({"command": made, "data": {"data": "digits"}}) == []
