"""Plan of the runs of a sweep: every combination of classes, options and seeds, each with a name of its own."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ppl_gen.core.components import Kind, class_name, kebab_case, name_of
from ppl_gen.core.convert import convert
from ppl_gen.core.errors import BadInput, require, shown
from ppl_gen.core.options import text
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.run_directory import Json, check_folder

_LISTED = {"seed": "seeds", "guide": "guides", "objective": "objectives", "prior": "priors"}
"""Options that a comparison takes as a list."""


class Planned(NamedTuple):
    """A run to be made."""

    path: Path
    given: Given
    """Classes of the run."""
    options: Json
    """Options that vary between the runs, and the seed."""


def combinations(
    model: Any,
    guides: Sequence[Any],
    priors: Sequence[Any],
    objectives: Sequence[Any],
    vary: Mapping[str, Sequence[Any]] | None,
    seeds: int | Sequence[int],
    out: str | Path | None = None,
) -> list[Planned]:
    """The runs of every combination, in order.

    :param guides: guides as `Run.fit` takes them; None for the model's own. Priors and objectives take the same.
    :param vary: values by the name of an option.
    :param seeds: the number of seeds, or a list of seeds.
    :param out: the folder of the run directories; by default `runs/<model>`.
    :raises BadInput: for an instance, which two runs would share, and if two runs would have the same name.
    """
    guides, priors, objectives = (
        _classes("guides", guides),
        _classes("priors", priors),
        _classes("objectives", objectives),
    )
    for reference in (model, *guides, *priors, *objectives):
        if isinstance(reference, nn.Module):
            raise BadInput(
                f"{type(reference).__name__} is an instance: several runs would share its weights; give its class"
            )
    folder = convert("out", out, Path | None) or Path("runs", label("model", model))
    check_folder(folder)
    planned: dict[Path, Planned] = {}
    varied = [[(name, value) for value in _values(name, each)] for name, each in _named("vary", vary).items()]
    classes = itertools.product(guides, priors, objectives)
    for (guide, prior, objective), values, seed in itertools.product(
        classes, itertools.product(*varied), _seeds(seeds)
    ):
        named: list[tuple[Kind, Any]] = [("guide", guide), ("prior", prior), ("objective", objective)]
        words = [label("model", model), *(label(kind, reference) for kind, reference in named if reference is not None)]
        words += [f"{name.replace('_', '-')}-{text(value)}" for name, value in values]
        path = folder / "-".join([*words, str(seed)])
        if path in planned:
            raise BadInput(
                f"two runs would have the name {path.name}; give every guide, objective, prior and seed only once"
            )
        planned[path] = Planned(path, Given(model, guide, prior, objective), {**dict(values), "seed": seed})
    return list(planned.values())


def check_shared(options: Mapping[str, Any], vary: Any) -> None:
    """Raise `BadInput` for options that a comparison does not give to all runs: those that it takes as a list, and
    those that vary."""
    for name in (*options, *_named("vary", vary)):
        if name in _LISTED:
            raise BadInput(f"{name}: give the values of this option as {_LISTED[name]}=[…]")
    if "data" in _named("vary", vary):
        raise BadInput("--vary data: runs are compared on the same images; give them once, as data=…")
    for name in options:
        if name in _named("vary", vary):
            raise BadInput(f"{name}: is given twice, for all runs and in vary; give it once")


def _named(option: str, given: Any) -> dict[str, Any]:
    """A dictionary of a user's; empty for None."""
    named: dict[str, Any] = convert(option, {} if given is None else given, Mapping[str, Any])
    return named


def _values(name: str, given: Any) -> list[Any]:
    """The values of an option that varies."""
    values = _list(given)
    if values is None:
        raise BadInput(f"--vary {name} {shown(given)}: must be a list of values")
    require(len(values) > 0, "vary", name, "needs at least one value")
    return values


def _seeds(given: Any) -> list[int]:
    """The seeds of a list, or of a number of seeds."""
    values = _list(given)
    if values is None:
        values = list(range(convert("seeds", given, int)))
    require(len(values) > 0, "seeds", shown(given), "needs at least one")
    return [convert("seeds", seed, int) for seed in values]


def _classes(option: str, given: Any) -> list[Any]:
    """Classes as a list. A single one needs none."""
    values = None if isinstance(given, type | nn.Module) else _list(given)
    values = [given] if values is None else values
    require(len(values) > 0, option, shown(given), "needs at least one")
    return values


def _list(given: Any) -> list[Any] | None:
    """The elements of a list, an array or a range; None for anything else."""
    if not isinstance(given, str | Mapping):
        with suppress(TypeError):
            return list(given)
    return None


def label(kind: Kind, reference: Any) -> str:
    """The part of a run's name that stands for a class: `my-guide`."""
    return kebab_case(class_name(name_of(kind, reference)))
