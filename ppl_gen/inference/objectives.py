"""Objectives by name.

- `elbo`: `Trace_ELBO`, E_q[log p(x, z) - log q(z | x)] with every term sampled (Kingma and Welling 2014, eq. 6).
- `elbo-analytic-kl`: `TraceMeanField_ELBO`, E_q[log p(x | z)] - KL(q(z | x) || p(z)) with the second term in closed
  form (eq. 7). Refused where Pyro has no closed form, since Pyro would sample it without a word.
"""

from collections.abc import Callable
from typing import Any, Literal

from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_gen.errors import BadInput, near_miss, require
from ppl_gen.inference.traces import Pair, evaluating

Objective = Literal["elbo", "elbo-analytic-kl"]
_CLASSES: dict[str, type[ELBO]] = {"elbo": Trace_ELBO, "elbo-analytic-kl": TraceMeanField_ELBO}


def objective(name: str, pair: Pair, x: Tensor, *args: Any, num_particles: int = 1) -> ELBO:
    """The Pyro ELBO of that name for a pair, its particles drawn in one call where the pair allows it.

    :param x: a few images to try it on.
    :raises BadInput: for an unknown objective, or one that the pair cannot have.
    """
    if name not in _CLASSES:
        raise BadInput(f"--objective {name}: unknown{near_miss(name, _CLASSES)}")
    require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
    if name == "elbo-analytic-kl":
        with evaluating():
            if pair.terms(x, *args, analytic_kl=True).kl is None:
                raise BadInput(
                    f"--objective {name}: no closed-form KL divergence between {pair.guide_name} and the prior of "
                    f"{pair.model_name}; use elbo"
                )
    vectorized = num_particles > 1 and pair.vectorized
    return _CLASSES[name](
        num_particles=num_particles,
        vectorize_particles=vectorized,
        max_plate_nesting=pair.max_plate_nesting if vectorized else float("inf"),
    )


class ScaleLatents(Messenger):
    """Multiplies the log-densities of latent sites, in model and guide alike, by `scale`: KL warm-up (Bowman et al.
    2016). With a scale below 1 the objective is no bound on log p(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def _pyro_sample(self, message: Any) -> None:
        if self.scale != 1 and not message["is_observed"]:
            message["scale"] = message["scale"] * self.scale


def scaled(function: Callable[..., Any], scale: ScaleLatents) -> Callable[..., Any]:
    """The Pyro function under `scale`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with scale:
            return function(*args, **kwargs)

    return call
