"""Binary vectors whose units depend on those before them: against sums over all vectors, and in a guide; float64."""

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.hierarchical_bernoulli import HierarchicalBernoulli
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.models.hierarchical_belief_net import HierarchicalBeliefNet
from ppl_gen.networks.autoregressive import AutoregressiveBernoulli
from ppl_gen.networks.distributions import BernoulliVector
from ppl_gen.networks.state_sums import binary_states

F64 = torch.float64


def test_log_prob_is_the_product_of_conditional_probabilities() -> None:
    logits, between = torch.randn(3, 5, dtype=F64), 2 * torch.randn(5, 5, dtype=F64)
    states = binary_states(5, F64, torch.device("cpu")).unsqueeze(1)
    q = AutoregressiveBernoulli(logits, between)
    expected = torch.zeros(32, 3, dtype=F64)
    for m in range(5):
        given = logits[:, m] + sum((between[m, j] * states[..., j] for j in range(m)), start=torch.zeros((), dtype=F64))
        expected += dist.Bernoulli(logits=given).log_prob(states[..., m].expand(32, 3))
    torch.testing.assert_close(q.log_prob(states), expected)
    torch.testing.assert_close(q.log_prob(states).logsumexp(0), torch.zeros(3, dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("units", [1, 5, 16, 40])
def test_each_unit_follows_those_before_it(units: int) -> None:
    """A unit is 1 if the log-odds of its uniform number are below its own, given the units before it: in blocks of
    units, too, and with samples and images."""
    logits, between = torch.randn(3, units, dtype=F64), torch.randn(units, units, dtype=F64)
    q = AutoregressiveBernoulli(logits, between).expand([4, 3])
    torch.manual_seed(1)
    z = q.sample((2,))
    torch.manual_seed(1)
    noise = torch.rand(units, 24, dtype=F64).logit().T.reshape(2, 4, 3, units)
    assert z.shape == (2, 4, 3, units) and q.log_prob(z).shape == (2, 4, 3)
    torch.testing.assert_close(z, (noise < logits + z @ between.tril(-1).T).to(F64), rtol=0, atol=0)


def test_without_dependence_it_is_a_vector_of_independent_units() -> None:
    logits = torch.randn(3, 4, dtype=F64)
    z = torch.bernoulli(torch.full((6, 3, 4), 0.5, dtype=F64))
    q = AutoregressiveBernoulli(logits, torch.zeros(4, 4, dtype=F64))
    torch.testing.assert_close(q.log_prob(z), BernoulliVector(logits).log_prob(z))
    with pytest.raises(ValueError, match=r"between \[4, 4\] expected, not \[4, 3\]"):
        AutoregressiveBernoulli(logits, torch.zeros(4, 3))


def _pair(latent_dims: tuple[int, ...]) -> tuple[HierarchicalBeliefNet, HierarchicalBernoulli, Tensor]:
    torch.manual_seed(3)
    net = HierarchicalBeliefNet(6, latent_dims=latent_dims).double()
    guide = HierarchicalBernoulli(6, torch.full((6,), 0.5), net, autoregressive=True).double()
    with torch.no_grad():
        for parameter in (*net.parameters(), *guide.between):
            parameter.normal_(0, 1.5)
        net.top.fill_(2.0)
        if len(latent_dims) > 1:  # the top layer follows the layer below, against its own prior
            weight, bias = guide.layers[-1].parameters()
            weight.fill_(2.0)
            bias.fill_(-3.0)
    return net, guide, torch.bernoulli(torch.full((5, 6), 0.5, dtype=F64))


@pytest.mark.parametrize("latent_dims", [(4,), (3, 2)])
def test_estimates_and_gradients_with_such_a_guide(latent_dims: tuple[int, ...]) -> None:
    """p(x) by importance samples is the sum over all states within 4.5 standard errors (false alarms of 7e-6 for each
    of 5 images); the means of 100,000 gradients of `elbo` and of `rloo` are that of the ELBO, summed over all states:
    no parameter of the guide is off by 5 standard errors."""
    net, guide, x = _pair(latent_dims)
    exact = exact_log_px(net, x)
    found = ppl_gen.log_marginal_likelihood(net, guide, x, num_samples=40_000)
    assert bool(((found.log_px - exact).abs() < 4.5 * found.log_px_mc_var.sqrt() + 1e-4).all())

    trained = [*guide.layers.parameters(), *guide.between]
    states = binary_states(sum(latent_dims), F64, torch.device("cpu"))
    values = {f"z{i + 1}": part for i, part in enumerate(states.split(list(latent_dims), -1))}
    one = x[:1]
    many = Pair.read(net, guide, x[:1].expand(len(states), -1))
    terms = many.terms_at({name: value.unsqueeze(0) for name, value in values.items()}, one.expand(len(states), -1))
    elbo = (terms.log_guide.exp() * terms.log_weight).sum()
    truth = torch.autograd.grad(elbo, trained)
    guide.baselines = nn.ModuleList()
    for name, num_particles in (("elbo", 1), ("rloo", 2)):
        loss = bind(construct(name, num_particles=num_particles), Pair.read(net, guide, x), x)
        draws = [
            torch.autograd.grad(-loss.differentiable_loss(net.model, guide.guide, one.expand(2500, -1)) / 2500, trained)
            for _ in range(40)
        ]
        for number, expected in enumerate(truth):
            each = torch.stack([draw[number] for draw in draws])
            error = each.std(0) / len(draws) ** 0.5
            assert bool(((each.mean(0) - expected).abs() <= 5 * error + 1e-12).all())


def test_what_needs_independent_binary_units_is_refused() -> None:
    net, guide, x = _pair((4,))
    for name in ("reinmax", "disarm", "muprop"):
        with pytest.raises(BadInput, match="is AutoregressiveBernoulli; use rloo"):
            bind(construct(name), Pair.read(net, guide, x), x)
    three = HierarchicalBeliefNet(6, latent_dims=(4,), categories=3)
    with pytest.raises(BadInput, match="autoregressive True: its units must be binary, but the model has 3 categories"):
        HierarchicalBernoulli(6, torch.full((6,), 0.5), three, autoregressive=True)
