"""`judge` against closed forms, and against the numbers of a pair with the same log weights."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference import judging
from ppl_gen.inference.judging import judge

ROOT = Path(__file__).parents[2]


def model(x: Tensor) -> None:
    """x ~ N(0, 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 * x, 0.8))


def _normal(value: np.ndarray, loc: np.ndarray | float, scale: float) -> np.ndarray:
    return -0.5 * ((value - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def test_log_normal_weights() -> None:
    """E[log w] = m and log E[w] = m + s^2 / 2, if log w is N(m, s^2)."""
    means = np.linspace(-100, -80, 400)
    found = judge(np.random.default_rng(0).normal(means, 0.8, size=(1000, 400)))
    # 4 standard errors, over 400 images as over one: a false alarm in 16,000.
    assert abs(float(found.elbo.mean()) - means.mean()) < 4 * 0.8 / math.sqrt(1000 * 400)
    assert found.mc_se == pytest.approx(math.sqrt(math.expm1(0.64) / 1000 / 400), rel=0.05)
    assert abs(found.mean - (means.mean() + 0.32)) < 4 * found.mc_se - found.bias
    assert found.bias == pytest.approx(-math.expm1(0.64) / 2000, rel=0.1)
    bounds = [float(bound.mean()) for bound in found.iwae.values()]
    assert list(found.iwae) == [1, 10, 100, 1000] and bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(float(found.elbo.mean())) and bounds[-1] == pytest.approx(found.mean)
    # (sum w)^2 / sum w^2 is S E[w]^2 / E[w^2] = S exp(-s^2).
    assert float(found.ess.mean()) == pytest.approx(1000 * math.exp(-0.64), rel=0.03)
    assert (found.khat < 0.7).all() and not found.at_least


@pytest.mark.parametrize(("shape", "at_least"), [(0.3, False), (1.2, True)])
def test_the_words_of_trust(shape: float, at_least: bool) -> None:
    """Weights with a Pareto tail of a known shape: w = u^-shape, and E[w] = 1 / (1 - shape) if it is finite."""
    found = judge(-shape * np.log(np.random.default_rng(1).uniform(size=(2000, 50))))
    assert float(found.khat.median()) == pytest.approx(shape, abs=0.1)
    assert found.at_least == at_least and ("log p(x)  at least" in str(found)) == at_least
    assert ("at least" in found._repr_html_()) == at_least
    assert ("a mode that the guide misses may be unseen" in str(found)) != at_least
    if not at_least:
        assert abs(found.mean + math.log(1 - shape)) < 4 * found.mc_se - found.bias


def test_numpy_alone_agrees_with_the_pair() -> None:
    """The weights of a conjugate pair, without Pyro, against the exact value and `log_marginal_likelihood`."""
    random = np.random.default_rng(2)
    x = random.normal(0, math.sqrt(2), size=200)
    z = random.normal(0.4 * x, 0.8, size=(1000, 200))
    ours = judge(_normal(z, 0, 1) + _normal(x, z, 1) - _normal(z, 0.4 * x, 0.8), observation="density")
    theirs = ppl_gen.log_marginal_likelihood(model, guide, torch.from_numpy(x), num_samples=1000)
    exact = _normal(x, 0, math.sqrt(2))
    for found in (ours, theirs):
        assert abs(found.mean - exact.mean()) < 4 * found.mc_se - found.bias
    for a, b in ((ours.elbo, theirs.elbo), (ours.log_px, theirs.log_px)):
        error = math.hypot(*(float(each.elbo_mc_var.sum().sqrt()) / 200 for each in (ours, theirs)))
        assert abs(float(a.mean() - b.mean())) < 4 * error
    assert ours.at_least == theirs.at_least == False  # noqa: E712
    for note in theirs.notes()[1:]:
        assert note in ours.notes()  # these are densities
    assert [line.split()[0] for line in str(ours).splitlines()[:4]] == ["200", "ELBO", "log", "gap"]


def test_the_same_weights_give_the_numbers_of_the_pair() -> None:
    x = torch.linspace(-3, 3, 40, dtype=torch.float64)
    options: dict[str, Any] = {"num_samples": 120, "chunk_size": 500}
    pyro.set_rng_seed(0)
    theirs = ppl_gen.log_marginal_likelihood(model, guide, x, ask_again=False, **options)
    pyro.set_rng_seed(0)
    ours = judge(ppl_gen.log_weights(model, guide, x, **options).numpy())
    names = ("log_px", "log_px_mc_var", "log_px_bias", "ess", "khat", "largest", "elbo", "elbo_mc_var", "gap")
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in names]
    for name in ("iwae", "iwae_jackknife"):
        assert getattr(ours, name).keys() == getattr(theirs, name).keys()
        pairs += [(getattr(ours, name)[k], each) for k, each in getattr(theirs, name).items()]
    for one, other in pairs:
        assert torch.allclose(one, other, rtol=0, atol=1e-9, equal_nan=True)
    entries, others = ours.more_entries("importance"), theirs.more_entries("importance")
    assert others.keys() - entries.keys() == {"reconstruction", "kl", "kl_analytic", "elbo_analytic_kl", "active_units"}
    assert entries["khat"] == pytest.approx(others["khat"]) and entries["elbo"] == pytest.approx(others["elbo"])


class Foreign:
    """An array of another library."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


def test_any_array_in_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Types and layouts make no difference, nor does the number of images in a block."""
    values = np.random.default_rng(3).normal(-90, 1, size=(60, 7)).astype(np.float32)
    whole = judge(values)
    np.save(tmp_path / "w.npy", values)
    given = [
        torch.from_numpy(values).requires_grad_(),
        np.load(tmp_path / "w.npy", mmap_mode="r"),
        np.asfortranarray(values),
        values.astype(">f4"),
        values.astype(np.float64),
        values.tolist(),
        Foreign(values),
    ]
    monkeypatch.setattr(judging, "_BLOCK", 120)
    counts: list[int] = []
    for each in given:
        found = judge(each, progress=counts.append)
        for field in fields(found):
            if isinstance(expected := getattr(whole, field.name), Tensor):
                assert torch.allclose(getattr(found, field.name), expected, rtol=0, atol=1e-12, equal_nan=True)
    assert counts == [2, 2, 2, 1] * len(given)


def test_zero_weights() -> None:
    """Half of an image's weights are zero: log p(x) is finite, and every bound of it is -inf, as for a guide with mass
    where the prior has none."""

    def half(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.HalfNormal(1.0))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def wide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 1.0))

    pair = ppl_gen.log_marginal_likelihood(half, wide, torch.zeros(3), num_samples=1000)
    weights = ppl_gen.log_weights(half, wide, torch.zeros(3), num_samples=1000)
    found = judge(weights)
    assert found.iwae.keys() == pair.iwae.keys() and (found.log_px.exp() - 0.3989).abs().max() < 4 * 0.4 / 1000**0.5
    for k, values in pair.iwae.items():
        assert torch.equal(found.iwae[k].isinf(), values.isinf())
    assert (found.elbo == -math.inf).all() and (found.gap == math.inf).all()
    weights[:, 1] = 0.5
    found = judge(weights)
    assert found.iwae[10][1] == 0.5 and found.elbo[1] == 0.5
    assert "the ELBO is -inf for 2 of 3 images: some of their weights are zero" in str(found)


def test_weights_that_differ_by_rounding_alone() -> None:
    """As those of an exact posterior in float32: there is no tail for k-hat to look at, and nothing to doubt."""
    weights = np.full((100, 3), 191.22) + 6e-5 * np.where(np.arange(100) % 2, 1, -1)[:, None]
    found = judge(weights)
    assert bool(found.khat.isnan().all()) and not found.untrusted.any() and not found.at_least
    weights[0] += 0.1
    assert judge(weights).at_least


def test_an_image_without_a_weight() -> None:
    weights = np.full((100, 3), -2.0)
    weights[:, 1] = -np.inf
    found = judge(weights)
    assert found.log_px.tolist() == [-2, -math.inf, -2] and found.at_least
    assert found.ess[1] == 0
    assert found.untrusted.tolist() == [False, True, False]
    assert "log p(x)  at least -inf by importance sampling, S = 100" in str(found)
    assert "log p(x) is -inf for 1 of 3 images: all their weights are zero" in str(found) and "nan" not in str(found)


NAN, INF = np.zeros((2, 3, 4)), np.zeros((5, 3))
NAN[1, 1, 1], INF[4, 2] = np.nan, np.inf
MASKED = np.ma.masked_array(np.zeros((2, 2)), [[True, False], [False, False]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NAN[1], "log_weights: is NaN for image 1, sample 1"),
        (INF, "log_weights: is +inf for image 2, sample 4"),
        (NAN, "log_weights: must have the shape [samples, images], not [2, 3, 4]"),
        (np.zeros(3), "log_weights: must have the shape [samples, images], not [3]"),
        (-3.0, "log_weights: must have the shape [samples, images], not []"),
        (
            np.zeros((1, 3)),
            "log_weights: has one sample for each image; the error of log p(x) needs at least two",
        ),
        (np.zeros((0, 3)), "log_weights: has no samples: its shape is [0, 3]"),
        (np.zeros((3, 0)), "log_weights: has no images: its shape is [3, 0]"),
        (np.zeros((3, 2), int), "log_weights: must be numbers in float32 or float64, not int64"),
        (np.zeros((3, 2), np.float16), "log_weights: must be numbers in float32 or float64, not float16"),
        (np.zeros((3, 2), complex), "log_weights: must be numbers in float32 or float64, not complex128"),
        (None, "log_weights: must be numbers in float32 or float64, not object"),
        ("w.npz", "log_weights: must be numbers in float32 or float64, not <U5"),
        ([[1.0, 2.0], [3.0]], "log_weights: is of type list, not an array of numbers (setting an array element"),
        (torch.zeros(3, 2).bfloat16(), "log_weights: must be numbers in float32 or float64, not bfloat16"),
        (MASKED, "log_weights: a masked array would lose its mask; fill it in first: log_weights.filled(-inf)"),
    ],
)
def test_what_cannot_be_judged(given: Any, message: str) -> None:
    with pytest.raises(BadInput) as error:
        judge(given)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_kind_that_is_none() -> None:
    with pytest.raises(BadInput, match="observation grey: choose from probability, density, cross-entropy"):
        judge(np.zeros((3, 2)), observation="grey")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("numpyro") is None, reason="no NumPyro")
def test_the_weights_of_numpyro(tmp_path: Path) -> None:
    """The two files of the documentation, in a process: the exact value is the last line that they print."""
    page = (ROOT / "docs" / "judge.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```python\n# (numpyro_\w+)\.py\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    blocks["numpyro_weights"] += "import numpy\nnumpy.save('w.npy', log_weights)\n"
    for name, text in blocks.items():
        (tmp_path / f"{name}.py").write_text(text)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "numpyro_weights.py"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, exact = done.stdout.splitlines()
    found = judge(np.load(tmp_path / "w.npy"), observation="density")
    assert lines == str(found).splitlines() and found.num_samples == 1000 and len(found.log_px) == 100
    assert abs(found.mean - float(exact)) < 4 * found.mc_se - found.bias + 1e-6  # rounding in float32
    assert float(exact) - float(found.elbo.mean()) < 0.01 and f"the exact value, −{-float(exact):.2f}" in page


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5, -1e5])
def test_a_constant_factor_of_the_weights_changes_no_diagnostic(offset: float) -> None:
    """Such as the unit of a density of 3,072 pixels. k-hat does not take spacings of float64 for ties."""
    log_weights = np.random.default_rng(0).normal(size=(1000, 20))
    plain, shifted = judge(log_weights), judge(log_weights - offset)
    assert not plain.at_least and not shifted.at_least
    torch.testing.assert_close(shifted.khat, plain.khat, rtol=0, atol=1e-6)
    torch.testing.assert_close(shifted.log_px + offset, plain.log_px, rtol=0, atol=1e-8)


def test_weights_that_no_probability_has() -> None:
    """Log-probabilities above 0 are told; densities may be."""
    weights = np.random.default_rng(0).normal(10.0, 0.3, size=(200, 4))
    too_high = "importance sampling is too high: above 0, which no log-probability is"
    assert too_high in judge(weights, observation="probability").notes()
    assert too_high not in judge(weights, observation="density").notes()
    assert too_high not in judge(weights - 11, observation="probability").notes()


def test_float32_weights_that_are_too_large() -> None:
    """Around -3e8 numbers of float32 are 32 nats apart. In float64, or with a spread of thousands, they are fine."""
    weights = np.random.default_rng(0).normal(-3e8, 1.0, size=(200, 4))
    with pytest.raises(BadInput, match=r"about -3e\+08 for image 0, where numbers of float32 are 32 nats apart"):
        judge(weights.astype(np.float32))
    assert float(judge(weights).gap.mean()) > 0.3
    wide = np.random.default_rng(0).normal(-3e8, 1e4, size=(200, 4)).astype(np.float32)
    assert judge(wide).at_least
    assert judge(np.full((30, 2), -700.0, dtype=np.float32)).log_px.tolist() == [-700, -700]
