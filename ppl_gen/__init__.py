"""Deep generative models as Pyro model/guide pairs, judged by how far the bound is from log p(x)::

    import ppl_gen

    run = ppl_gen.Run.fit("vae", data="digits", guide="flow", epochs=20)
    print(run.evaluation)
    print(ppl_gen.log_marginal_likelihood(run.model, run.guide, run.data.targets("test"), num_samples=1000))

Importing the package imports nothing heavy and changes no setting of Pyro or torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_gen.comparison import Comparison
    from ppl_gen.core.errors import BadInput, Failed
    from ppl_gen.data.arrays import images_sha256
    from ppl_gen.experiment.fitted import load
    from ppl_gen.inference.estimate import Estimate
    from ppl_gen.inference.importance import ImportanceEstimate, log_marginal_likelihood, log_weights
    from ppl_gen.inference.judging import judge
    from ppl_gen.run import Run

# The module of a command takes seconds to import. Python runs this file first, while it looks for that module.
if sys.argv[:1] == ["-m"] and any(word.removeprefix("-m").partition(".")[0] == __name__ for word in sys.orig_argv):
    import_module("ppl_gen.core.interrupts").end_at_once()

__version__ = "0.2.0"

_HOMES = {
    "BadInput": "ppl_gen.core.errors",
    "Comparison": "ppl_gen.comparison",
    "Estimate": "ppl_gen.inference.estimate",
    "Failed": "ppl_gen.core.errors",
    "ImportanceEstimate": "ppl_gen.inference.importance",
    "Run": "ppl_gen.run",
    "images_sha256": "ppl_gen.data.arrays",
    "judge": "ppl_gen.inference.judging",
    "load": "ppl_gen.experiment.fitted",
    "log_marginal_likelihood": "ppl_gen.inference.importance",
    "log_weights": "ppl_gen.inference.importance",
}
__all__ = [
    "BadInput",
    "Comparison",
    "Estimate",
    "Failed",
    "ImportanceEstimate",
    "Run",
    "images_sha256",
    "judge",
    "load",
    "log_marginal_likelihood",
    "log_weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ppl_gen' has no attribute '{name}'")
