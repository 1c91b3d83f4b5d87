"""Objectives of training, one file each. They are found by name, as guides are.

Bounds of one sample, or their mean over several samples:

- `elbo`: the ELBO with every term sampled, and the gradient that the pair allows.
- `elbo-analytic-kl`: the ELBO with the KL term in closed form.
- `stl`: the ELBO with a gradient through z only.
- `beta`: the ELBO with a weight of the KL term.

Bounds of K samples, image by image:

- `iwae`: the importance-weighted bound L_K.
- `dreg`: the same with a gradient of lower variance.
- `miwae`, `piwae`, `ciwae`: the mean of such bounds over groups of samples; that for the guide alone; a weighted mean
  of the ELBO and L_K.
- `renyi`: the Rényi bound of order alpha.
- `vimco`, `rws`, `wake-sleep`: for guides of discrete z, or any guide.

Estimates of the ELBO's gradient for guides of discrete z, which `ppl_gen.gradients` compares with the exact one:

- `rloo`, `nvil`: the score function with a baseline; for any guide.
- `arm`, `disarm`: antithetic pairs of binary z.
- `muprop`, `rebar`, `relax`: the score function with a control variate.
- `straight-through`, `straight-through-gumbel`, `reinmax`, `gumbel-softmax`, `concrete`: biased, through a z that
  counts as differentiable.

`adversarial` is the sum of the two losses of a GAN. It is no bound on log p(x).

An objective is a class with one of three methods (`ppl_gen.core.contracts`): `surrogate(terms)`, with a
`guide_surrogate(terms)` where model and guide ascend different quantities; `loss(pair, x, *args)`; or
`elbo(pair, x, *args)`. `construct` makes one from a name and options. `bind` makes an `ELBO`
for `SVI` from an objective and a pair.

Pyro's own classes do not give these bounds image by image. `RenyiELBO` does so only if one unscaled plate covers every
site. It has no `differentiable_loss`, and gives a guide of discrete z no gradient at alpha = 0. `ReweightedWakeSleep`
forms one weight for a whole batch. Here every image has its own weights. Masks are applied. A pair with scales of its
own is refused.
"""

from collections.abc import Mapping
from typing import Any

from ppl_gen.core import components
from ppl_gen.core.contracts import Loss, Objective, Surrogate, WrapsELBO
from ppl_gen.core.errors import BadInput, require
from ppl_gen.inference.objectives.loss import bind

__all__ = ["bind", "check", "construct"]


def construct(
    objective: str | type | Objective,
    *,
    num_particles: int | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Objective:
    """Make an objective with its options.

    `num_particles`, `alpha` and `beta` are passed to a constructor with parameters of these names.

    :param objective: name of an objective of the package, `file.py:Class`, `package.module:Class`, a class, or an
        instance, which has its options already.
    :param num_particles: samples of z per image; None for the default of the class.
    :param options: further keyword arguments of the constructor.
    :raises BadInput: for an unknown objective, and for an option that it does not have.
    """
    require(num_particles is None or num_particles >= 1, "num_particles", num_particles, "must be at least 1")
    cls, name = _found(objective)
    shared = {"num_particles": num_particles, "alpha": alpha, "beta": beta}
    supplied = {option: value for option, value in shared.items() if value is not None}
    for option, value in supplied.items():
        # One particle is the default of the command line: it is given to objectives that take no number, too.
        if not components.takes(cls, option) and (option, value) != ("num_particles", 1):
            raise BadInput(f"--{option.replace('_', '-')} {value}: {_not_taken(option, cls, name)}")
    if isinstance(cls, type):
        made = components.construct("objective", cls, supplied, options or {})
    elif options:
        raise BadInput(f"{', '.join(options)}: objective {name} is an instance with options of its own; leave this out")
    else:
        made = cls
    if not components.fits("objective", made) or not isinstance(made, Surrogate | Loss | WrapsELBO):
        needed = components.NEEDED["objective"]
        raise BadInput(f"objective {name}: needs a method {needed}; surrogate also needs an attribute num_particles")
    return made


def check(
    objective: str | type | Objective,
    num_particles: int | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Raise `BadInput` for an unknown objective, and for options that are invalid with every pair.

    A class in a file or module of the user is not imported: reading a configuration must run no code. A class with
    options besides these three is not checked without them.
    """
    require(num_particles is None or num_particles >= 1, "num_particles", num_particles, "must be at least 1")
    if not (isinstance(objective, str) and components.is_external(objective)):
        cls = _found(objective)[0]
        if options is None and components.options("objective", cls):
            return  # its options decide which numbers are valid
        if not components.takes(cls, "num_particles"):
            # Only `construct` refuses it: the configuration of an older run may hold a number that was ignored.
            num_particles = None
        construct(objective, num_particles=num_particles, alpha=alpha, beta=beta, options=options)


def _found(objective: str | type | Objective) -> tuple[Any, str]:
    """The class or the instance, and its name in messages."""
    if not isinstance(objective, str):
        return objective, objective.__name__ if isinstance(objective, type) else type(objective).__name__
    return components.find("objective", objective), objective


def _not_taken(option: str, cls: Any, name: str) -> str:
    """The reason why an objective does not have an option."""
    if not isinstance(cls, type):
        return f"the objective {name} is an instance with options of its own; leave this out"
    owners = [known for known, each in components.known("objective").items() if components.takes(each, option)]
    if not 1 <= len(owners) <= 2:
        return f"{name} has no such option"
    return f"belongs to the objective{'s' * (len(owners) > 1)} {' and '.join(owners)}, not {name}"
