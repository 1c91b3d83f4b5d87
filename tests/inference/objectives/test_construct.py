"""Objectives by name, class or instance, and their options."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from pyro.infer import Trace_ELBO
from torch import nn

from ppl_gen.core import components
from ppl_gen.core.contracts import Loss, Surrogate, WrapsELBO
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.objectives import check, construct
from ppl_gen.inference.objectives.iwae import IWAE
from ppl_gen.inference.objectives.loss import name_of
from ppl_gen.inference.objectives.renyi import Renyi

NAMES = [
    *("elbo", "elbo-analytic-kl", "stl", "beta", "iwae", "miwae", "piwae", "ciwae", "dreg", "renyi", "vimco", "rws"),
    *("wake-sleep", "adversarial", "rloo", "nvil", "muprop", "arm", "disarm", "rebar", "relax", "straight-through"),
    *("straight-through-gumbel", "gumbel-softmax", "concrete", "reinmax"),
]
OPTIONS = {
    "muprop": ["baseline"],
    **{name: ["backward"] for name in ("iwae", "dreg", "vimco", "rws")},
    **{name: ["groups"] for name in ("miwae", "piwae")},
    **{name: ["temperature"] for name in ("rebar", "straight-through-gumbel", "gumbel-softmax", "reinmax")},
    "concrete": ["temperature", "prior_temperature"],
    "nvil": ["normalize", "hidden_dim", "decay"],
    "relax": ["temperature", "hidden_dim"],
}
"""Their own options."""


def test_names_are_those_of_the_files() -> None:
    """One public class in each file, whose name says what the command line calls it. Its only bases are others of them
    and torch's module, for those with parameters: no objective needs a base class."""
    named = components.known("objective")
    assert sorted(NAMES) == list(named)
    for name, cls in named.items():
        module = sys.modules[cls.__module__]
        assert module.__name__.rpartition(".")[2] == name.replace("-", "_")
        assert module.__all__ == [cls.__name__]
        assert set(cls.__mro__) - {object, nn.Module} <= set(named.values())


@pytest.mark.parametrize("name", NAMES)
def test_each_is_of_one_form(name: str) -> None:
    """With its defaults, every option of its constructor annotated, by keyword, and told in its docstring."""
    made: Any = construct(name)
    assert sum(isinstance(made, form) for form in (Surrogate, Loss, WrapsELBO)) == 1
    assert name_of(made) == name
    own = [option.name for option in components.options("objective", type(made))]
    assert own == OPTIONS.get(name, [])
    for parameter in inspect.signature(type(made)).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation is not parameter.empty
        assert f":param {parameter.name}:" in (type(made).__doc__ or "")
        assert getattr(made, parameter.name) == parameter.default


def test_options_by_name() -> None:
    made: Any = construct("renyi", num_particles=7, alpha=-1.0)
    assert isinstance(made, Renyi) and (made.num_particles, made.alpha) == (7, -1.0)
    assert construct(made) is made and construct(made, num_particles=1) is made
    made = construct(IWAE)
    assert isinstance(made, IWAE) and made.num_particles == 50
    made = construct("ppl_gen.inference.objectives.beta:Beta", beta=2.0)
    assert (made.num_particles, made.beta) == (1, 2.0)


@pytest.mark.parametrize(
    ("objective", "options", "words"),
    [
        ("vimko", {}, "unknown objective 'vimko'; did you mean 'vimco'"),
        ("elbo", {"num_particles": 0}, "num_particles 0: must be at least 1"),
        ("iwae", {"num_particles": 1}, "num_particles 1: iwae needs at least 2 samples; try 50"),
        ("iwae", {"alpha": 0.5}, "alpha 0.5: belongs to the objective renyi, not iwae"),
        ("stl", {"beta": 2.0}, "beta 2.0: belongs to the objectives beta and ciwae, not stl"),
        (IWAE(), {"beta": 2.0}, "beta 2.0: the objective IWAE is an instance with options of its own"),
        (IWAE(), {"options": {"groups": 2}}, "groups: objective IWAE is an instance"),
        ("renyi", {"alpha": 1.0}, "alpha 1.0: must be a number other than 1"),
        ("beta", {"beta": float("inf")}, "beta inf: must be above 0"),
        ("adversarial", {"num_particles": 5}, "num_particles 5: adversarial has no such option"),
        ("iwae", {"options": {"groups": 2}}, "objective.groups: IWAE has no such option"),
        ("pyro.infer:Trace_ELBO", {}, r"the class needs a method 'surrogate\(self, terms\)', .* that returns an ELBO"),
        (Trace_ELBO(), {}, "objective Trace_ELBO: needs a method 'surrogate"),
        (Path, {}, "objective Path: needs a method 'surrogate"),
        ("nowhere.py:Mine", {}, "objective 'nowhere.py': no such file"),
    ],
)
def test_refused(objective: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        construct(objective, **options)


def test_a_configuration_runs_no_code(elsewhere: Path) -> None:
    """What is checked of a user's own objective waits until it is constructed."""
    Path("mine.py").write_text("raise RuntimeError('was run')", encoding="utf-8")
    check("mine.py:Mine", 3, 0.5, 2.0)
    with pytest.raises(BadInput, match="cannot be imported: RuntimeError: was run"):
        construct("mine.py:Mine")
    with pytest.raises(BadInput, match="num_particles 0"):
        check("mine.py:Mine", 0)
    with pytest.raises(BadInput, match="did you mean 'vimco'"):
        check("vimko", 5)
    check("adversarial", 5)  # as a run of before may have it
