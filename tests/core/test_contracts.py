"""What a class is found to offer, in whatever way it has its methods."""

import ast
from pathlib import Path
from typing import Any, ClassVar

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core import components, contracts
from ppl_gen.core.contracts import (
    AdversarialModel,
    Amortized,
    ClosedForm,
    CountsStates,
    DiscreteLayers,
    Guide,
    HasDensity,
    HasPictures,
    HasPrior,
    HasTopPrior,
    LayeredModel,
    LinearGaussianModel,
    Model,
    SelectsPixels,
    SumsPixelsFirst,
    SumsStates,
    defaults_of,
    members,
    missing,
    offers,
)
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.factor_analysis import FactorAnalysis
from ppl_gen.models.gan import GAN
from ppl_gen.models.hierarchical_belief_net import HierarchicalBeliefNet
from ppl_gen.models.hierarchical_vae import HierarchicalVAE
from ppl_gen.models.vae import VAE
from ppl_gen.networks.distributions import BernoulliVector, LinearBernoulliVector

MODELS = {
    "belief-net": BeliefNet(6),
    "factor-analysis": FactorAnalysis(6, latent_dim=2),
    "gan": GAN((2, 3)),
    "hierarchical-belief-net": HierarchicalBeliefNet(6),
    "hierarchical-vae": HierarchicalVAE(6),
    "vae": VAE((2, 3)),
}
OFFERED = {
    HasDensity: {"belief-net", "factor-analysis", "gan", "vae"},
    ClosedForm: {"factor-analysis"},
    HasPictures: {"belief-net", "gan"},
    AdversarialModel: {"gan"},
    DiscreteLayers: {"hierarchical-belief-net"},
    LayeredModel: {"hierarchical-vae"},
    HasTopPrior: {"hierarchical-vae"},
    LinearGaussianModel: {"factor-analysis"},
    Model: set(MODELS),
    Guide: set(),
    Amortized: set(),
}


@pytest.mark.parametrize("contract", OFFERED, ids=lambda contract: contract.__name__)
def test_what_the_models_offer(contract: type) -> None:
    assert {name for name, model in MODELS.items() if offers(model, contract)} == OFFERED[contract]


def test_every_class_with_a_name_has_the_method_of_its_kind() -> None:
    kinds: dict[components.Kind, type] = {"model": Model, "guide": Guide, "prior": HasPrior}
    for kind, contract in kinds.items():
        classes = components.known(kind)
        assert classes and all(missing(cls, contract) is None for cls in classes.values())


def test_distributions() -> None:
    prior = BernoulliVector(torch.zeros(3))
    linear = LinearBernoulliVector(prior.enumerate_support(), torch.ones(3, 5), torch.zeros(5))
    for contract in (CountsStates, SumsPixelsFirst, SelectsPixels):
        assert offers(prior, contract) and offers(linear, contract) and not offers(dist.Bernoulli(0.5), contract)
    assert offers(linear, SumsStates) and not offers(prior, SumsStates)


def test_names_of_a_contract() -> None:
    assert members(HasDensity, Amortized, HasPrior) == ["prior", "likelihood", "encode", "posterior"]
    assert missing(VAE((2, 3)), AdversarialModel) == "adversarial_losses"
    assert missing(nn.Linear(1, 1), AdversarialModel) == "prior"


class _Swapped(nn.Module):
    """A method taken back, a submodule as a method, a parameter as an attribute, and text where a method should be."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(2, 2)
        self.scaled_weight, self.log_psi, self.loc = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        self.likelihood = "bernoulli"

    def posterior(self, context: Tensor) -> dist.Distribution:
        return dist.Normal(context, 1.0).to_event(1)

    def prior(self) -> dist.Distribution:
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def log_px(self, x: Tensor) -> Tensor:
        return x.sum(-1)


def test_what_isinstance_does_not_see() -> None:
    model: Any = _Swapped()
    assert offers(model, ClosedForm)
    model.log_px = None  # of another prior
    assert not offers(model, ClosedForm) and offers(_Swapped, ClosedForm)
    assert offers(model, Amortized) and offers(model, LinearGaussianModel)
    assert offers(model, HasPrior) and not offers(model, HasDensity)


def test_defaults() -> None:
    class Own:
        default_guide = "prior"
        training_defaults: ClassVar = {"epochs": 3}

    found = defaults_of(Own)
    assert (found.default_guide, found.training_defaults) == ("prior", {"epochs": 3})
    assert found.data_defaults == found.evaluation_defaults == {}
    assert defaults_of(VAE).default_guide == "normal"
    assert defaults_of(GAN).evaluation_defaults["estimator"] == "annealed"


def test_the_page_imports_nothing_of_the_package_and_no_torch() -> None:
    """At run time; types may."""
    for name in ("contracts", "options", "commands", "tables"):
        path = Path(ppl_gen.__file__).parent / "core" / f"{name}.py"
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in body if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.split(".")[0] in ("ppl_gen", "torch", "pyro")]


def test_every_contract_is_documented() -> None:
    protocols = [each for each in vars(contracts).values() if getattr(each, "_is_protocol", False)]
    ours = [each for each in protocols if each.__module__ == contracts.__name__]
    assert len(ours) >= 12
    for each in ours:
        assert each.__doc__ and members(each)
        assert all(getattr(each, name).__doc__ for name in members(each) if hasattr(each, name))
