"""Plan of the runs of a sweep: every combination of classes, options and seeds, each with a name of its own."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ppl_gen.core.components import Kind, class_name, kebab_case, name_of
from ppl_gen.core.errors import BadInput
from ppl_gen.core.options import text
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.run_directory import Json


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
    vary: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    out: str | Path | None = None,
) -> list[Planned]:
    """The runs of every combination, in order.

    :param guides: guides as `Run.fit` takes them; None for the model's own. Priors and objectives take the same.
    :param vary: values by the name of an option.
    :param out: the folder of the run directories; by default `runs/<model>`.
    :raises BadInput: for an instance, which two runs would share, and if two runs would have the same name.
    """
    for reference in (model, *guides, *priors, *objectives):
        if isinstance(reference, nn.Module):
            raise BadInput(
                f"{type(reference).__name__} is an instance: several runs would share its weights; give its class"
            )
    folder = Path("runs", label("model", model)) if out is None else Path(out)
    planned: dict[Path, Planned] = {}
    varied = [[(name, value) for value in values] for name, values in vary.items()]
    classes = itertools.product(guides, priors, objectives)
    for (guide, prior, objective), values, seed in itertools.product(classes, itertools.product(*varied), seeds):
        named: list[tuple[Kind, Any]] = [("guide", guide), ("prior", prior), ("objective", objective)]
        words = [label("model", model), *(label(kind, reference) for kind, reference in named if reference is not None)]
        words += [f"{name.replace('_', '-')}-{text(value)}" for name, value in values]
        path = folder / "-".join([*words, str(seed)])
        if path in planned:
            raise BadInput(
                f"two runs would be called {path.name}; give every guide, objective, prior and seed only once"
            )
        planned[path] = Planned(path, Given(model, guide, prior, objective), {**dict(values), "seed": seed})
    return list(planned.values())


def label(kind: Kind, reference: Any) -> str:
    """The part of a run's name that stands for a class: `my-guide`."""
    return kebab_case(class_name(name_of(kind, reference)))
