"""What the benchmarks compare is the same number."""

import json
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch

from benchmarks import em, enumeration, wall
from ppl_gen.inference.enumeration import exact_log_px


def test_ways_to_sum_over_a_belief_net() -> None:
    model = enumeration.BeliefNet(9, latent_dim=3, init_scale=1.0).double()
    x = torch.bernoulli(torch.full((5, 9), 0.5, dtype=torch.float64))
    with pyro.validation_enabled(False):
        losses = [way(model, x)() for way in (enumeration.separate_sites, enumeration.broadcast, enumeration.ours)]
    for loss in losses:
        torch.testing.assert_close(loss, -exact_log_px(model, x).sum(), rtol=1e-12, atol=0)


def test_ways_to_sum_over_a_mixture() -> None:
    model = enumeration.Mixture(9, num_components=4).double()
    x = torch.bernoulli(torch.full((5, 9), 0.5, dtype=torch.float64))
    with pyro.validation_enabled(False):
        losses = [way(model, x)() for way in (enumeration.hand_written, enumeration.stock_mixture, enumeration.ours)]
    for loss in losses:
        torch.testing.assert_close(loss, -exact_log_px(model, x).sum(), rtol=1e-8, atol=0)  # softplus from 20 on is l


def test_wall(tmp_path: Path) -> None:
    """One process of its own, the slope of made-up doublings, and the figure."""
    root = Path(__file__).parents[1]
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.wall", "--measure", "ours", "2"],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    measured = json.loads(made.stdout)
    assert measured["seconds"] > 0 and measured["bytes"] >= 0
    points = [{"units": m, "seconds": 3 * 2.0**m, "bytes": 4.0**m} for m in range(1, 8)]
    assert wall.slope(points, "seconds") == pytest.approx(1) and wall.slope(points, "bytes") == pytest.approx(2)
    assert wall.slope(points[:2], "seconds") is None
    figure = wall.draw({"ours": {"points": points, "stop": "10 GB"}, "sites": {"points": [], "stop": "error"}})
    figure.savefig(tmp_path / "wall.png")
    assert (tmp_path / "wall.png").stat().st_size > 1000


def test_em_climbs() -> None:
    torch.manual_seed(0)
    x = torch.bernoulli(torch.tensor([[0.9] * 4 + [0.1] * 4, [0.1] * 4 + [0.9] * 4])[torch.arange(200) % 2])
    bounds = [em.log_joint(x, *em.fit(x, 2, n)).logsumexp(-1).mean() for n in (0, 1, 5, 20)]
    assert bounds == sorted(bounds) and bounds[-1] > bounds[0] + 0.5
