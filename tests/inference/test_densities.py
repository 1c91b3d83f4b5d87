"""Sites of a trace: sums over plates, scores and baselines, written out."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.guides.mixture import DiagonalMixture
from ppl_gen.inference.densities import (
    leave_one_out_mean,
    masked_log_prob,
    minus_leave_one_out_mean,
    plates_of,
    sample_sites,
    score_function,
    sum_to,
    units_of,
)

F64 = torch.float64


def _trace(x: Tensor) -> poutine.Trace:
    """z with an event of 2 in a plate of 3 inside that of the images, and a w for each image."""

    def model(x: Tensor) -> None:
        pyro.deterministic("mean", x.mean())
        with pyro.plate("images", len(x), dim=-1):
            w = pyro.sample("w", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            with pyro.plate("parts", 3, dim=-2), poutine.mask(mask=x > 0), poutine.scale(scale=7.0):
                pyro.sample("z", dist.Normal(w.unsqueeze(-1).expand(len(x), 2), 1.0).to_event(1))
            for _ in pyro.plate("loop", 1):
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return poutine.trace(model).get_trace(x)


def test_sites_and_their_plates() -> None:
    trace = _trace(torch.zeros(4, dtype=F64))
    sites = {site["name"]: site for site in sample_sites(trace)}
    assert set(sites) == {"w", "z", "x"}
    assert {name: {frame.name for frame in plates_of(site)} for name, site in sites.items()} == {
        "w": {"images"},
        "z": {"images", "parts"},
        "x": {"images"},
    }


def test_masked_and_summed_over_the_inner_plate() -> None:
    """With the mask, without the scale, each element of the plate counted."""
    x = torch.tensor([1.0, -1.0, 2.0, 3.0], dtype=F64)
    site = _trace(x).nodes["z"]
    found = sum_to(site, masked_log_prob(site), -3, -1).reshape(4)
    w = site["fn"].base_dist.loc[..., 0]
    expected = (-0.5 * (site["value"] - w.unsqueeze(-1)) ** 2).sum((0, 2)) - 3 * torch.tensor(2 * torch.pi).log()
    torch.testing.assert_close(found, torch.where(x > 0, expected, 0.0))


def test_a_density_that_does_not_depend_on_the_plate_counts_for_each_element() -> None:
    site = _trace(torch.zeros(4, dtype=F64)).nodes["z"]
    torch.testing.assert_close(sum_to(site, torch.full((4,), 2.0), -3, -1).flatten(), torch.full((4,), 6.0))


def test_units_of_a_site() -> None:
    site = _trace(torch.zeros(4, dtype=F64)).nodes["z"]
    found = units_of(site, (1, 4), -3, -1)
    assert found.shape == (1, 4, 6)
    torch.testing.assert_close(found[0, 2], site["value"][:, 2].flatten())


def test_means_of_the_others() -> None:
    values = torch.randn(5, 3, dtype=F64, requires_grad=True)
    expected = torch.stack([torch.cat([values[:i], values[i + 1 :]]).mean(0) for i in range(5)])
    torch.testing.assert_close(leave_one_out_mean(values), expected)
    torch.testing.assert_close(minus_leave_one_out_mean(values), (values - expected).detach())
    assert not minus_leave_one_out_mean(values).requires_grad


def test_only_a_choice_has_a_score() -> None:
    """The score of a mixture is E[log pi_k | z], with the mask; a normal distribution has none."""
    normal = dist.Normal(torch.zeros(3), 1.0)
    assert score_function({"fn": normal, "value": normal.sample(), "mask": None}) is None
    loc, scale = torch.randn(2, 4, 3, 2, dtype=F64).unbind(0)
    logits, z = torch.randn(4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    joint = logits.log_softmax(-1) + dist.Normal(loc, scale.exp()).log_prob(z.unsqueeze(1)).sum(-1)
    expected = (joint.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    mask = torch.tensor([True, False, True, True])
    found = score_function({"fn": DiagonalMixture(loc, scale.exp(), logits), "value": z, "mask": mask})
    assert found is not None
    torch.testing.assert_close(found, torch.where(mask, expected, 0.0))
