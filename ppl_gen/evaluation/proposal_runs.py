"""The guides of further runs, to share importance samples with a run's own."""

from dataclasses import replace

from torch import nn

from ppl_gen.components import class_name, is_external
from ppl_gen.errors import BadInput
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.loading import Named, open_fitted, restricted
from ppl_gen.runs import Run


def other_guides(options: EvaluationOptions, named: Named) -> list[nn.Module]:
    """The guides of `options.proposals`.

    :param named: classes of the user's own, again.
    :raises BadInput: where a guide of the user's own is not named again, or a class that is named is of no run.
    """
    guides = []
    unused = set(options.proposal_guides)
    for path in options.proposals:
        other = Run.open(path)
        again, recorded = restricted(other, named), str(other.config.get("guide"))
        if is_external(recorded):
            alike = [name for name in options.proposal_guides if class_name(name) == class_name(recorded)]
            if alike:
                chosen = recorded if recorded in alike else alike[0]
                if chosen != recorded and len(alike) > 1:
                    raise BadInput(f"--proposal-guides {' '.join(alike)}: which of them is {recorded}, of {path}?")
                again = replace(again, guide=chosen)
                unused.discard(chosen)
            elif class_name(str(named.guide)) != class_name(recorded):
                raise BadInput(
                    f"{path}: was fitted with the guide {recorded}; name it again: --proposal-guides {recorded}"
                )
        guides.append(open_fitted(path, again, device=options.device)[3])
    if unused:
        raise BadInput(f"--proposal-guides {' '.join(sorted(unused))}: no run of --proposals was fitted with that")
    return guides
