"""Contracts of a user's or the package's classes: the methods that the package looks for, and the values they return.

A contract is a `typing.Protocol`. No class inherits from it: a class with its methods satisfies it. Every contract
except `Model` and `Guide` is optional, and its docstring says what needs it. `offers(model, HasDensity)` tests for one.

B is the number of images in a batch, D their pixels; numbers are in nats.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeGuard, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from pyro.infer.elbo import ELBO
    from torch import Tensor

    from ppl_gen.inference.estimate import Estimate
    from ppl_gen.inference.pair import Pair, Terms

# Models ------------------------------------------------------------------------------------------------------------


class Model(Protocol):
    """A generative model p(x, z). Every model has this."""

    def model(self, x: Tensor | None = None, *args: Any, n: int = 1) -> Any:
        """Pyro model: one plate over the images, latent sites in it, and the observed site "x".

        :param x: images [B, D]; without them, n images are drawn.
        :param args: labels [B], for a signature that has them.
        """


class HasPrior(Protocol):
    """A distribution p(z): a model of one latent site, or the prior that `--prior` puts in the place of its own."""

    def prior(self) -> TorchDistribution:
        """p(z), without a batch."""


class HasTopPrior(Protocol):
    """A model of several layers of latents. `--prior` replaces the distribution of the top layer."""

    def top_prior(self) -> TorchDistribution:
        """p(z_L), without a batch."""


class HasDensity(HasPrior, Protocol):
    """A model of one latent site that also returns p(z) and p(x | z) as distributions, the same as in its `model`.

    Annealing, filling in hidden pixels and pictures of the latent space need it.
    """

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(x | z), event [D], for z [..., units] with any batch dimensions, such as chains x images."""


class NamesQuantity(Protocol):
    """A model of a part of the images, given the rest."""

    @property
    def quantity(self) -> str:
        """What stands in place of `log p(x)` in tables and pictures, such as `log p(x_lower | x_upper)`."""


class SeveralNumbersPerPixel(Protocol):
    """A model whose decoder has several numbers for each pixel. Fewer images and samples are then in memory at once."""

    @property
    def numbers_per_pixel(self) -> int:
        """Numbers of the decoder's output for each pixel."""


class ClosedForm(Protocol):
    """A model whose log p(x) has a closed form. Where a sum over states can be computed too, the two are compared."""

    def log_px(self, x: Tensor, *args: Any) -> Tensor:
        """log p(x) [B].

        :param args: the arguments that `model` takes after x, such as labels. A `log_px` that does not take them is not
            used.
        """


class HasPictures(Protocol):
    """A model that draws pictures of itself after a fit."""

    def pictures(self) -> Mapping[str, tuple[str, Tensor, list[str]]]:
        """A mapping from file names to a title, images [n, D] and n captions."""


class AdversarialModel(HasDensity, Protocol):
    """A generator with a discriminator, for the objective `adversarial`."""

    def adversarial_losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of generator and discriminator, scalars, each with a gradient for its own parameters alone."""

    def monitor(self, x: Tensor) -> Mapping[str, float]:
        """Numbers for an epoch's line in `metrics.jsonl`, from validation images [B, D]."""

    @property
    def log_scale(self) -> Tensor:
        """log of the standard deviation of p(x | z), scalar, which is fitted after training."""


# Guides ------------------------------------------------------------------------------------------------------------


class Guide(Protocol):
    """An approximate posterior q(z | x). Every guide has this."""

    def guide(self, x: Tensor, *args: Any) -> Any:
        """Pyro guide: samples all latent sites of the model, in a plate of the same name; or none of them, if the model
        enumerates all.

        :param x: images [B, D].
        :param args: labels [B], for a signature that has them; and by the name `index` row numbers [B] of the images,
            for a guide with parameters for each image.
        """


class Amortized(Protocol):
    """A guide of one latent site that consists of a network and a distribution: q(z | x) = posterior(encode(x)).

    The split of the gap, the prior `vamp` and filling in hidden pixels need it.
    """

    def encode(self, x: Tensor) -> Tensor:
        """Contexts [B, ...] of images [B, D]."""

    def posterior(self, context: Tensor) -> TorchDistribution:
        """q(z | context), batch [B]."""


class Discretizes(Protocol):
    """A guide that samples nothing and gives points of the model's one continuous latent site, over which training sums
    p(x, z). Evaluation does not use them."""

    def nodes(self, finer: int = 1) -> tuple[Tensor, Tensor]:
        """Points z [points, ...], the same for all images, and log p(z) + log w [points], where w is the volume that a
        point stands for. Training asks for them at every step, and they may be random in training mode.

        :param finer: factor by which the points of each unit are more than in training; to measure the error.
        """


# Models that a guide is written for --------------------------------------------------------------------------------


class LayeredModel(Protocol):
    """A model with the latent sites z1, z2, ..., for the guide `hierarchical`."""

    @property
    def latent_dims(self) -> tuple[int, ...]:
        """Units of z1, z2, ..."""

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Units of the hidden layers between x and z1, between z1 and z2, ..."""

    @property
    def activation(self) -> str:
        """Nonlinearity between layers."""


class DiscreteLayers(Protocol):
    """A model of layers of discrete units, the latent sites z1, z2, ..., for the guide `hierarchical-bernoulli`."""

    @property
    def latent_dims(self) -> tuple[int, ...]:
        """Units of z1, z2, ..."""

    @property
    def between_dims(self) -> tuple[int, ...]:
        """Units of the hidden layers of each network, from the lower layer of units to the upper one."""

    @property
    def activation(self) -> str:
        """Nonlinearity of the hidden layers."""

    @property
    def categories(self) -> int:
        """Number of values of a unit; 2 for binary units."""


class DrawsUnits(Protocol):
    """A model whose prior of z depends on a part of the image, for the guide `conditional-prior`."""

    def draw_units(self, x: Tensor) -> Tensor:
        """Sample statements of all latent sites within a plate of images [images, ...]."""


class LinearGaussianModel(Protocol):
    """Factor analysis, whose posterior is the guide `exact-gaussian`."""

    @property
    def scaled_weight(self) -> Tensor:
        """Loadings [units, D], each divided by the standard deviation of its pixel's noise."""

    @property
    def log_psi(self) -> Tensor:
        """log of the noise variance of each pixel, [D] or [1]."""

    @property
    def loc(self) -> Tensor:
        """Mean image [D]."""


# Objectives -------------------------------------------------------------------------------------------------------

Draws: TypeAlias = Literal["reparametrized", "detached", "frozen-guide"]
"""Ways to draw z for a surrogate.

- reparametrized: z is a function of the guide's parameters, and gradients go through it.
- detached: z has no gradient.
- frozen-guide: as reparametrized, and log q(z | x) depends on the guide's parameters through z alone.
"""


@runtime_checkable
class Surrogate(Protocol):
    """An objective that is a function of log-densities. It needs an attribute `draws` if z is not reparametrized, and a
    method `bound` if the reported number is not the one that is differentiated."""

    num_particles: int
    """Samples of z per image."""

    def surrogate(self, terms: Terms) -> Tensor:
        """The quantity [images] whose gradient the parameters ascend, in nats.

        :param terms: log_likelihood, log_prior, log_guide and log_weight, each [samples, images]. For a guide that
            chooses among components, this method is called again, without gradients, on terms with one sample replaced.
        """


@runtime_checkable
class Loss(Protocol):
    """An objective that draws and scores z by itself, through the pair's `terms` or otherwise. In a class that has
    both, `loss` takes precedence over `surrogate`."""

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """The number to minimize, summed over the images, in nats.

        If samples of a guide are reparametrized but for a discrete choice (`pair.scored`), the `terms` of the pair have
        a `score`. This method must add its gradient, times the learning signal of each sample.
        """


@runtime_checkable
class WrapsELBO(Protocol):
    """An objective that is an `ELBO` of Pyro. It respects the scales of latent sites, so that KL warm-up applies."""

    def elbo(self, pair: Pair, x: Tensor, *args: Any) -> ELBO:
        """The ELBO for a pair, with a `differentiable_loss`.

        :param x: a few images to try it on.
        """


Objective: TypeAlias = Surrogate | Loss | WrapsELBO
"""The quantity that training optimizes: a class of one of three forms. Its options are constructor arguments."""


@runtime_checkable
class HasDraws(Protocol):
    """An objective that states how z is drawn. The default is reparametrized."""

    draws: Draws


ELBOGradient: TypeAlias = Literal["unbiased", "biased"]
"""What the mean of an objective's gradient is, for the parameters of model and guide, if it stands for that of the ELBO
of a discrete z: the ELBO's gradient, or another one."""


@runtime_checkable
class HasELBOGradient(Protocol):
    """An objective whose gradient stands for that of the ELBO. `ppl_gen.gradients` compares it with the exact one."""

    elbo_gradient: ELBOGradient


@runtime_checkable
class HasBound(Protocol):
    """An objective whose reported number is not the one that is differentiated."""

    def bound(self, terms: Terms) -> Tensor:
        """The reported number [images], in nats."""


@runtime_checkable
class HasBackward(Protocol):
    """An objective whose gradient may go through some of its samples only, drawn so that its mean is the same."""

    backward: int | None
    """The number of these samples, below `num_particles`; None for all."""


@runtime_checkable
class HasGuideSurrogate(Protocol):
    """An objective whose `surrogate` is for the model alone."""

    def guide_surrogate(self, terms: Terms) -> Tensor:
        """The quantity [images] whose gradient the guide's parameters ascend, in nats. It reaches them through
        log q(z | x), and through z if z is reparametrized. The gradient of `surrogate` reaches p(x, z) alone, at fixed
        z. Parameters that p and q share take both."""


@runtime_checkable
class ChecksPair(Protocol):
    """An objective that is not defined for every pair."""

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        """Raise `BadInput` for a pair that cannot have this objective."""


@runtime_checkable
class Monitors(Protocol):
    """An objective with its own numbers to monitor in training, in place of the terms of the ELBO."""

    def monitor(self, pair: Pair, x: Tensor, *args: Any) -> dict[str, float]:
        """The numbers that `metrics.jsonl` holds for these images."""


@runtime_checkable
class Finishes(Protocol):
    """An objective with something to do after the last step of training."""

    def finish(self, model: Any, x: Tensor) -> None:
        """Change the model in place.

        :param x: the validation images, or the training images where there are none.
        """


@runtime_checkable
class HasLossForm(WrapsELBO, Protocol):
    """An objective that wraps an ELBO of Pyro and is also a `Loss`, for pairs that need none of Pyro's handlers."""

    def loss_form(self, pair: Pair) -> Loss | None:
        """The same objective as a `Loss`; None if it is none for this pair.

        :param pair: a pair with `direct`.
        """


# Estimators --------------------------------------------------------------------------------------------------------


class Estimator(Protocol):
    """An estimator of log p(x) beside those of the package. A function with the same arguments is one, too."""

    def estimate(self, model: Any, guide: Any, x: Tensor, *args: Any, num_samples: int) -> Tensor | Estimate:
        """Log weights [samples, B], which are log p(x, z) - log q(z | x), or an `Estimate` of log p(x). It must be low
        in expectation: E[exp(log p(x))] <= p(x), as for the mean of weights.

        :param model: the fitted model.
        :param guide: the fitted guide.
        :param x: images [B, D].
        :param args: labels [B], if the model or the guide takes them.
        :param num_samples: samples per image that the evaluation is made with. A method or a function without this
            parameter is called without it.
        """


# Distributions -----------------------------------------------------------------------------------------------------


class SumsStates(Protocol):
    """A likelihood p(x | z) that sums over all values of z at once, without an array of states x images."""

    def sums_over(self, prior: Any, z: Tensor) -> bool:
        """True if `log_marginal` can sum over this z with this p(z)."""

    def log_marginal(self, value: Tensor, prior: Any) -> Tensor | None:
        """log sum_z p(z) p(value | z) [B], for value [B, D]; None where z is not every state once."""


class SumsPixelsFirst(Protocol):
    """A distribution of images whose `log_prob` sums over pixels first: it makes no array of states x images x
    pixels."""

    @property
    def sums_pixels_first(self) -> bool:
        """True."""


class CountsStates(Protocol):
    """A distribution that knows the size of its finite support without listing it."""

    @property
    def num_states(self) -> int:
        """Number of values that `enumerate_support` would list."""


class SelectsPixels(Protocol):
    """A distribution of images whose pixels are independent, so that some can be left out."""

    def select(self, pixels: Tensor) -> TorchDistribution:
        """Distribution of some of the pixels, given by an index or a mask [D]."""


class ObservesPixels(Protocol):
    """A distribution of images whose pixels are independent, so that pixels can be missing, others in each image."""

    def observed(self, pixels: Tensor) -> TorchDistribution:
        """Distribution of the pixels where a mask [..., D] is true, with values [..., D] as before."""


# Missing pixels ----------------------------------------------------------------------------------------------------


@runtime_checkable
class TakesMissing(Protocol):
    """A guide whose methods take images with NaN where a pixel is missing, if the attribute is true. All other guides
    get 0 there. The attribute of a model says the same of its `log_px(x)`."""

    takes_missing: bool


# Defaults of a model's class ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Defaults:
    """Attributes of a model's class with its recommended settings. Each is optional; options that are given take
    precedence."""

    default_guide: str = "normal"
    """Name of its guide."""
    data_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `DataOptions` by name."""
    training_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainingOptions` by name."""
    evaluation_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `EvaluationOptions` by name; used with the default guide only."""


def defaults_of(model: Any) -> Defaults:
    """The defaults of a model's class, given as a class or an instance; for attributes that it does not have, those of
    the package."""
    cls = model if isinstance(model, type) else type(model)
    return Defaults(**{each.name: getattr(cls, each.name) for each in fields(Defaults) if hasattr(cls, each.name)})


# Tests -------------------------------------------------------------------------------------------------------------

Contract = TypeVar("Contract")


def members(*contracts: type) -> list[str]:
    """Names of the members of contracts, base contracts first."""
    bases = [base for contract in contracts for base in reversed(contract.__mro__)]
    asked = [base for base in bases if base not in (object, Generic, Protocol)]
    names = (name for base in asked for name in (*inspect.get_annotations(base), *vars(base)))
    return list(dict.fromkeys(name for name in names if not name.startswith("_")))


def missing(owner: object, contract: type) -> str | None:
    """Name of the first member of a contract that an object, or a class, does not have; None if it has all.

    A method must be callable, so that `model.log_px = None` withdraws a method of the class. `isinstance` with a
    runtime-checkable Protocol does not see that. From Python 3.12 on it does not see submodules, parameters and buffers
    of a `torch.nn.Module` either.
    """
    for name in members(contract):
        found = getattr(owner, name, None)
        if found is None or (callable(getattr(contract, name, None)) and not callable(found)):
            return name
    return None


def offers(owner: object, contract: type[Contract]) -> TypeGuard[Contract]:
    """True if an object has every member of a contract."""
    return missing(owner, contract) is None
