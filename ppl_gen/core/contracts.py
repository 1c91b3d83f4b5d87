"""The contracts of the package, as protocols. A class that has the methods fulfils the contract: no base class, no
decorator and no registration is needed."""

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from pyro.infer.elbo import ELBO
    from torch import Tensor

    from ppl_gen.inference.traces import Pair, Terms

# Objectives

Draws: TypeAlias = Literal["reparametrized", "detached", "frozen-guide"]
"""How z is drawn for a surrogate.

- reparametrized: z is a function of the guide's parameters, and gradients go through it.
- detached: z has no gradient.
- frozen-guide: as reparametrized, and log q(z | x) depends on the guide's parameters through z alone.
"""


@runtime_checkable
class Surrogate(Protocol):
    """An objective that is a function of log-densities. It needs `draws` where z is not reparametrized, and `bound`
    where the reported number is not the one that is differentiated."""

    num_particles: int
    """Samples of z per image."""

    def surrogate(self, terms: "Terms") -> "Tensor":
        """The quantity [images] whose gradient the parameters climb, in nats.

        :param terms: log_likelihood, log_prior, log_guide and log_weight, each [samples, images]. A guide with a choice
            in it has this called again, without gradients, on terms in which one sample is replaced.
        """
        ...


@runtime_checkable
class Loss(Protocol):
    """An objective that draws and scores z by itself, through the pair's `terms` or otherwise. Where a class has both,
    `loss` takes the place of `surrogate`."""

    def loss(self, pair: "Pair", x: "Tensor", *args: Any) -> "Tensor":
        """The number to be minimized, summed over the images, in nats.

        Where a guide draws a path and makes a choice (`pair.scored`), the `terms` of the pair have a `score`; its
        gradient, times the amount that each sample adds, is left to this method.
        """
        ...


@runtime_checkable
class WrapsELBO(Protocol):
    """An objective that is an `ELBO` of Pyro. It scales with the KL term of the pair, so that KL warm-up applies."""

    def elbo(self, pair: "Pair", x: "Tensor", *args: Any) -> "ELBO":
        """The ELBO for a pair, with a `differentiable_loss`.

        :param x: a few images to try it on.
        """
        ...


Objective: TypeAlias = Surrogate | Loss | WrapsELBO
"""The quantity that training optimizes: a class of one of three forms, with its options in its constructor."""


@runtime_checkable
class HasDraws(Protocol):
    """An objective that says how z is drawn; without it, z is reparametrized."""

    draws: Draws


@runtime_checkable
class HasBound(Protocol):
    """An objective whose reported number is not the one that is differentiated."""

    def bound(self, terms: "Terms") -> "Tensor":
        """The reported number [images], in nats."""
        ...


@runtime_checkable
class ChecksPair(Protocol):
    """An objective that not every pair can have."""

    def check(self, pair: "Pair", x: "Tensor", *args: Any) -> None:
        """Raise `BadInput` for a pair that cannot have this objective."""
        ...


@runtime_checkable
class Monitors(Protocol):
    """An objective that is measured in training by something else than the terms of the ELBO."""

    def monitor(self, pair: "Pair", x: "Tensor", *args: Any) -> dict[str, float]:
        """The numbers that `metrics.jsonl` holds for these images."""
        ...


@runtime_checkable
class Finishes(Protocol):
    """An objective with something to do after the last step of training."""

    def finish(self, model: Any, x: "Tensor") -> None:
        """Change the model in place.

        :param x: the validation images, or the training images where there are none.
        """
        ...


@runtime_checkable
class Recordable(Protocol):
    """An objective that says by itself what `--capture` records."""

    def recordable(self, pair: "Pair") -> Objective:
        """The same objective as one whose operations can be recorded. Raises `BadInput` if there is none."""
        ...
