"""Every prior, put to the same tests; float64."""

from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_gen.core.components import construct, find, known
from ppl_gen.core.errors import BadInput
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation.estimating import estimators
from ppl_gen.experiment.assembling import assemble, batch, read_pair
from ppl_gen.experiment.config import Config
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.exact import closed_form
from ppl_gen.inference.modes import evaluating
from ppl_gen.models.vae import VAE
from ppl_gen.priors.vamp import MixtureOfNormals, Vamp
from ppl_gen.run import Run

PIXELS = 6
CHOSEN: dict[str, dict[str, Any]] = {
    "standard-normal": {},
    "vamp": {"num_components": 7},
    "flow": {"num_transforms": 2, "transform_dims": (16,)},
}


def make(name: str, latent_dim: int) -> Any:
    torch.manual_seed(0)
    model = VAE((PIXELS,), latent_dim=latent_dim, hidden_dims=(8,))
    guide = Normal((PIXELS,), latent_dim, "z", model)
    supplied = {"latent_dim": latent_dim, "guide": guide, "data_examples": torch.rand(5, PIXELS)}
    prior = construct("prior", find("prior", name), supplied, CHOSEN[name]).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return prior


def test_all_priors_are_here() -> None:
    assert set(known("prior")) == set(CHOSEN)


@pytest.mark.parametrize("name", CHOSEN)
def test_density_is_that_of_the_samples(name: str) -> None:
    """On a grid in two dimensions: it integrates to 1, and gives the samples' mean of a bounded function within 4.5
    standard errors (false alarms of 7e-6)."""
    prior = make(name, 2)
    t = torch.linspace(-4, 4, 501, dtype=torch.float64)
    z, w = t.sinh(), t.cosh() * (t[1] - t[0])
    points, weights = torch.cartesian_prod(z, z), torch.cartesian_prod(w, w).prod(1)

    def bounded(z: Tensor) -> Tensor:
        return (z[..., 0] + 2 * z[..., 1]).sin() + z[..., 0].tanh()

    with torch.no_grad():
        density = prior.prior().log_prob(points).exp() * weights
        samples = bounded(prior.prior().expand([20_000]).sample())
    assert float(density.sum()) == pytest.approx(1, abs=1e-3)
    error = float(samples.std()) / len(samples) ** 0.5
    assert abs(float(samples.mean() - (density * bounded(points)).sum())) < 4.5 * error + 1e-3


def test_a_mixture_of_normals_is_the_mean_of_their_densities() -> None:
    """Value, gradients, moments and expanded shapes are those of `MixtureSameFamily`, far out and for narrow
    components, too; in float32 it is as near to float64 as its input is."""
    loc = (3 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    scale = (torch.randn(6, 4, dtype=torch.float64) - 2).exp().requires_grad_()
    near = (loc + scale * torch.randn(6, 4, dtype=torch.float64)).detach()
    z = torch.cat([near, 20 * torch.randn(5, 4, dtype=torch.float64)]).reshape(11, 1, 4).requires_grad_()
    logits = torch.zeros(6, dtype=torch.float64)
    slow = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))
    fast = MixtureOfNormals(loc, scale)
    weights = torch.rand(11, 3, dtype=torch.float64)
    ours, theirs = (each.expand([3]).log_prob(z) for each in (fast, slow))
    assert ours.shape == (11, 3)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((weights * each).sum(), (loc, scale, z)) for each in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close((fast.mean, fast.variance), (slow.mean, slow.variance))
    torch.testing.assert_close(fast.log_prob(z[0, 0]), slow.log_prob(z[0, 0]))
    single = [each.detach().float() for each in (loc, scale, z)]
    double = [each.double() for each in single]
    in_float32, in_float64 = (MixtureOfNormals(*each[:2]).log_prob(each[2]) for each in (single, double))
    torch.testing.assert_close(in_float32, in_float64.float(), rtol=2e-7, atol=0)
    with torch.no_grad():
        assert fast.expand([2]).sample(torch.Size([5])).shape == (5, 2, 4)


class Wide(dist.Normal):
    """A normal distribution with another density."""

    def log_prob(self, value: Tensor) -> Tensor:
        return 2 * super().log_prob(value)


class Posterior(nn.Module):
    """The part of a guide that a VampPrior uses."""

    def __init__(self, family: Any, shape: tuple[int, ...]):
        super().__init__()
        self.family, self.shape = family, shape

    def encode(self, x: Tensor) -> Tensor:
        return x[:, :6].reshape(-1, *self.shape)

    def posterior(self, context: Tensor) -> Any:
        return self.family(context, 1.0).to_event(len(self.shape))


@pytest.mark.parametrize(
    ("family", "shape", "fast"),
    [(dist.Normal, (6,), True), (dist.Normal, (2, 3), False), (Wide, (6,), False), (dist.Laplace, (6,), False)],
)
def test_other_posteriors_have_their_own_density(family: Any, shape: tuple[int, ...], fast: bool) -> None:
    """The prior of any guide is the mean of its densities; only vectors of normal units are multiplied out."""
    guide = Posterior(family, shape)
    vamp = Vamp(torch.rand(4, PIXELS), guide, num_components=4).double()
    prior = vamp.prior()
    assert isinstance(prior, MixtureOfNormals) is fast
    z = torch.randn(3, *shape, dtype=torch.float64)
    each = guide.posterior(guide.encode(vamp.pseudo_inputs.sigmoid())).log_prob(z[:, None])
    torch.testing.assert_close(prior.log_prob(z), each.logsumexp(-1) - torch.tensor(4.0).double().log())


@pytest.mark.parametrize("name", CHOSEN)
def test_a_model_uses_it(name: str) -> None:
    """`model()` and `prior()` of a VAE both do, its parameters are the model's, and saved with it."""
    data = load_data(DataOptions("digits", train_size=50))
    config = Config(
        model_options={"latent_dim": 3, "hidden_dims": (8,)},
        prior=name,
        prior_options=CHOSEN[name],
        data=DataOptions("digits"),
    )
    model, guide = assemble(config, data)
    with evaluating(model, guide):
        images = batch(model, guide, data, torch.arange(8))
        terms = read_pair(model, guide, images).terms(*images)
        values: Any = model
        torch.testing.assert_close(
            terms.log_prior[0], values.prior().log_prob(terms.latents["z"][0]), rtol=1e-4, atol=1e-4
        )
        standard = torch.distributions.Normal(0.0, 1.0).log_prob(terms.latents["z"][0]).sum(-1)
    assert torch.allclose(terms.log_prior[0], standard) is (name == "standard-normal")
    for parameter, _ in model.named_parameters():
        assert parameter.startswith(("decoder.", "swapped_prior."))
    again, _ = assemble(config, data)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", ["standard-normal", "flow"])
def test_the_top_layer_of_several_uses_it(name: str, elsewhere: Path) -> None:
    """log p(z_1, z_2) is the prior's at z_2 and the model's own at z_1; training changes it, and it is saved."""
    few: dict[str, Any] = {"data": "digits", "train_size": 50, "num_samples": 20, "quiet": True}
    layers = {"latent_dims": (4, 3), "hidden_dims": (8, 6)}
    run = Run.fit("hierarchical-vae", prior=name, prior_options=CHOSEN[name], model_options=layers, epochs=1, **few)
    first = {key: value.clone() for key, value in run.model.state_dict().items()}
    run = Run.open(run.resume(2, quiet=True).path)
    model: Any = run.model
    x = run.data.targets("test", slice(8))
    with torch.no_grad(), evaluating(model, run.guide):
        terms = read_pair(model, run.guide, (x,)).terms(x, num_samples=5)
        z = terms.latents
        loc, log_scale = model.layers[0](z["z2"]).chunk(2, -1)
        of_z1 = dist.Normal(loc, log_scale.exp()).log_prob(z["z1"]).sum(-1)
        expected = model.top_prior().log_prob(z["z2"]) + of_z1
        assert model.top_prior().event_shape == (3,)
    torch.testing.assert_close(terms.log_prior, expected, rtol=1e-4, atol=1e-4)
    standard = dist.Normal(0.0, 1.0).log_prob(z["z2"]).sum(-1)
    assert torch.allclose(terms.log_prior - of_z1, standard, atol=1e-4) is (name == "standard-normal")
    changed = {key.partition(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, first[key])}
    assert ("swapped_prior" in changed) is (name == "flow")


def test_a_closed_form_ends_with_the_prior_that_it_was_of() -> None:
    """log p(x) of factor analysis is known for its own prior alone; under another it is estimated."""
    data = load_data(DataOptions("digits", "dequantized", train_size=50))
    for prior, known_exactly in ((None, True), ("flow", False)):
        config = Config(model="factor-analysis", guide="normal", prior=prior, model_options={"latent_dim": 3})
        model, guide = assemble(config, data)
        with evaluating(model, guide):
            x = data.targets("train", slice(8))
            pair = read_pair(model, guide, (x,))
        assert closed_form(model) is known_exactly
        chosen = estimators(model, pair, "auto", x.device)
        assert (chosen.exact, chosen.quadrature, chosen.sampled) == (known_exactly, not known_exactly, True)


def test_what_cannot_be_swapped() -> None:
    data = load_data(DataOptions("digits", train_size=50))
    without = Config(model="hierarchical-belief-net", guide="hierarchical-bernoulli", prior="flow")
    with pytest.raises(BadInput, match=r"has no prior\(\) of one latent site, and no top_prior\(\) of several"):
        assemble(without, data)
    layered = Config(model="hierarchical-vae", guide="hierarchical", prior="vamp")
    with pytest.raises(BadInput, match="needs a guide with encode"):
        assemble(layered, data)
    endless = Config(guide="semi-amortized", prior="vamp", model_options={"hidden_dims": (8,)})
    with pytest.raises(BadInput, match="is made from the guide semi-amortized, which needs the prior"):
        assemble(endless, data)
    fixed = Config(prior="vamp", fixed_model=True, model_options={"hidden_dims": (8,)})
    with pytest.raises(BadInput, match="is made from the guide"):
        assemble(fixed, data)
    discrete = Config(model="belief-net", guide="bernoulli", prior="flow", model_options={"latent_dim": 3})
    with pytest.raises(BadInput, match=r"is continuous .* but the latent of BeliefNet is discrete"):
        assemble(discrete, data)
    supplied = {"guide": nn.Linear(1, 1), "data_examples": torch.rand(5, PIXELS), "latent_dim": 2}
    with pytest.raises(BadInput, match="needs a guide with encode"):
        construct("prior", find("prior", "vamp"), supplied, {})
    with pytest.raises(BadInput, match=r"prior\.num_components 0"):
        construct("prior", find("prior", "vamp"), supplied, {"num_components": 0})
