"""Guides of further runs, which draw a part of a run's importance samples."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from ppl_gen.core.components import class_name, is_external
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.config import KINDS, Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory


def other_guides(options: EvaluationOptions, given: Given) -> list[nn.Module]:
    """The guides of the runs in `options.proposals`.

    :param given: classes of the user's own and images, as for the run that is evaluated.
    :raises BadInput: if a guide of the user's own is not named again, and if a named class belongs to no run.
    """
    guides = []
    unused = set(options.proposal_guides)
    for path in options.proposals:
        directory = RunDirectory.open(path)
        chosen = _named_again(path, str(directory.config.get("guide")), options.proposal_guides, given)
        unused.discard(str(chosen))
        own = {kind: None for kind in KINDS if not is_external(str(directory.config.get(kind)))}
        again = replace(given, **own) if chosen is None else replace(given, **own, guide=chosen)
        guides.append(Fitted.open(path, again, device=options.device).guide)
    if unused:
        raise BadInput(
            f"--proposal-guides {' '.join(sorted(unused))}: no run of --proposals was fitted with this guide"
        )
    return guides


def _named_again(path: Path, recorded: str, names: Sequence[str], given: Given) -> str | None:
    """The name, among those in `--proposal-guides`, of a run's own guide. None if the guide is one of the package, or
    the one of the run that is evaluated."""
    if not is_external(recorded):
        return None
    alike = [name for name in names if class_name(name) == class_name(recorded)]
    if alike:
        chosen = recorded if recorded in alike else alike[0]
        if chosen != recorded and len(alike) > 1:
            raise BadInput(
                f"--proposal-guides {' '.join(alike)}: {path} was fitted with {recorded}, and several of these have "
                "its name; give the recorded one"
            )
        return chosen
    if class_name(str(given.names()["guide"])) != class_name(recorded):
        raise BadInput(f"{path}: was fitted with the guide {recorded}; name it again: --proposal-guides {recorded}")
    return None
