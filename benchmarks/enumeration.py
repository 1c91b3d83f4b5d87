"""Training steps of the two models with an exact likelihood, against hand-written PyTorch and stock Pyro."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor, nn

from benchmarks.steps import training_step
from benchmarks.timing import Comparison, medians, show
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture
from ppl_gen.networks.state_sums import binary_states


def no_guide(x: Tensor) -> None: ...


def hand_written(model: Mixture, x: Tensor) -> Callable[[], Tensor]:
    """-log p(x) of a mixture in plain PyTorch."""

    def loss() -> Tensor:
        logits = model.weight + model.bias
        log_px_given_z = x @ logits.T - F.softplus(logits).sum(-1)
        return -(log_px_given_z + (0.1 * model.level).log_softmax(-1)).logsumexp(-1).sum()

    return loss


def stock_mixture(model: Mixture) -> Callable[[Tensor], None]:
    """A mixture as in Pyro's tutorials: an array of components x images x pixels."""

    def function(x: Tensor) -> None:
        pyro.module("mixture", model)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=0.1 * model.level), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Bernoulli(logits=(model.weight + model.bias)[z]).to_event(1), obs=x)

    return function


def ours(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """-log p(x) as the training loop has it."""
    with evaluating(model, Enumerated()):
        pair = Pair.read(model, Enumerated(), x[:8])
    elbo = bind(construct("elbo"), pair, x[:8])
    return lambda: elbo.differentiable_loss(pair.model, pair.guide, x)


def broadcast(model: BeliefNet, x: Tensor) -> Callable[[], Tensor]:
    """-log p(x) of a belief net with one site whose support is all 2^M states, summed pixel by pixel for every state
    and image."""
    states = binary_states(len(model.weight), x.dtype)

    def function(x: Tensor) -> None:
        prior = dist.Bernoulli(logits=model.logits).to_event(1)
        with pyro.plate("data", len(x)):
            # A categorical over the states: its logits are the log-probabilities of the vectors.
            index = pyro.sample("z", dist.Categorical(logits=prior.log_prob(states)), infer={"enumerate": "parallel"})
            logits = states[index] @ model.weight + model.bias
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    return lambda: elbo.differentiable_loss(function, no_guide, x)


def separate_sites(model: BeliefNet, x: Tensor) -> Callable[[], Tensor]:
    """-log p(x) of a belief net with M sites, each enumerated in a dimension of its own."""

    def function(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = model.bias
            for unit, (prior, weight) in enumerate(zip(model.logits, model.weight, strict=True)):
                z = pyro.sample(f"z{unit}", dist.Bernoulli(logits=prior), infer={"enumerate": "parallel"})
                logits = logits + z.unsqueeze(-1) * weight
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    return lambda: elbo.differentiable_loss(function, no_guide, x)


def floor(model: BeliefNet, x: Tensor) -> Callable[[], None]:
    """One softplus and one sigmoid for every state and pixel, in the cache: what a gradient takes that makes each
    logit's own, without the sums over them and without the images."""
    block = torch.randn(128, x.shape[1])

    def call() -> None:
        for _ in range(2 ** len(model.weight) // 128):
            F.softplus(block)
            block.sigmoid()

    return call


def _gradient(loss: Callable[[], Tensor], model: nn.Module) -> Callable[[], object]:
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(loss(), parameters)


def _step(loss: Callable[[], Tensor], model: nn.Module) -> Callable[[], object]:
    """With one fused Adam, the loss read at every step."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        adam.step()
        adam.zero_grad()
        return value.item()

    return step


def _stock_svi(model: Mixture, x: Tensor) -> Callable[[], object]:
    """As Pyro's tutorials do it."""
    svi = SVI(stock_mixture(model), no_guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    return lambda: svi.step(x)


def main(rounds: int) -> list[Comparison]:
    shown = []
    torch.manual_seed(0)
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        for components, images in ((20, 1000), (500, 500)):
            x = torch.bernoulli(torch.rand(images, 784))
            models = [Mixture(784, num_components=components) for _ in range(3)]
            candidates = {
                "hand-written PyTorch, fused Adam": _step(hand_written(models[0], x), models[0]),
                "ppl_gen": training_step(models[1], Enumerated(), x, TrainingOptions()),
            }
            stock = {"stock Pyro": _stock_svi(models[2], x)}
            small = components * images <= 20_000  # else each array of components x images x pixels has 784 MB
            seconds = medians(candidates | (stock if small else {}), rounds=max(3, rounds // 20), warmup=2)
            if not small:
                seconds |= medians(stock, rounds=2, warmup=1)
            title = f"mixture step, K = {components}, N = {images}"
            shown.append(show(title, seconds, "hand-written PyTorch, fused Adam"))
        x = torch.bernoulli(torch.rand(100, 784))
        reference = "a softplus and a sigmoid per state and pixel"
        for units, calls in ((12, rounds // 4), (16, rounds // 40), (20, rounds // 200)):
            model = BeliefNet(784, latent_dim=units, init_scale=0.1)
            candidates = {reference: floor(model, x), "ppl_gen": _gradient(ours(model, x), model)}
            seconds = medians(candidates, rounds=max(2, calls), warmup=1)
            if units == 12:
                stock = {"stock Pyro, broadcasting": _gradient(broadcast(model, x), model)}
                seconds |= medians(stock, rounds=2, warmup=1)
            shown.append(show(f"belief net, gradient of -log p(x), M = {units}, N = 100", seconds, reference))
        model, many = BeliefNet(784, latent_dim=16, init_scale=0.1), torch.bernoulli(torch.rand(10_000, 784))
        seconds = medians({"ppl_gen, exact_log_px": lambda: exact_log_px(model, many)}, rounds=2, warmup=0)
        shown.append(show("belief net, exact log p(x) of 10,000 images, M = 16", seconds, "ppl_gen, exact_log_px"))
    return shown
