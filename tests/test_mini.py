"""The one-file introduction, `docs/mini.py`: it runs, and its numbers are the package's."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian

import ppl_gen
from ppl_gen import fit

FILE = Path(__file__).parents[1] / "docs" / "mini.py"


@pytest.fixture(scope="module")
def mini() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mini", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _own_parameters() -> Iterator[None]:
    """Pyro's parameter store is the same afterwards."""
    with pyro.get_param_store().scope():
        yield


def test_prints_what_it_returns(mini: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed rows are the package's estimates from the same weights, whose bounds rise to log p(x)."""
    _, _, x, log_w = mini.main(epochs=3, num_samples=200, num_images=60)
    assert x.shape == (60, 64) and log_w.shape == (200, 60)
    out = capsys.readouterr().out
    rows = [
        float(value)
        for row in ("ELBO", "IWAE, k = 10", "IWAE, k = 100", r"log p\(x\)", "gap")
        for value in re.findall(rf"^{row} +(-?[\d.]+) ± ", out, re.MULTILINE)
    ]
    elbo, log_px = float(log_w.mean()), float((log_w.logsumexp(0) - torch.tensor(200.0).log()).mean())
    assert rows[0] == pytest.approx(elbo, abs=0.006) and rows[3] == pytest.approx(log_px, abs=0.006)
    assert rows[4] == pytest.approx(log_px - elbo, abs=0.006)
    assert rows[:4] == sorted(rows[:4]) and len(rows) == 5


def test_training_raises_the_bound(mini: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    few, more = (mini.main(epochs=epochs, num_samples=20, num_images=100)[-1] for epochs in (1, 10))
    assert float(more.mean() - few.mean()) > 2
    assert "10  ELBO" in capsys.readouterr().out


def test_weights_are_the_packages(mini: ModuleType) -> None:
    """Of the same draws, up to the rounding of sums in float32."""
    vae, guide = mini.VAE(64, latent_dim=3, hidden_dim=20), mini.NormalGuide(64, 3, hidden_dim=20)
    x = mini.digits()[1][:16]
    torch.manual_seed(1)
    ours = mini.log_weights(vae.model, guide.guide, x, 100)
    torch.manual_seed(1)
    torch.testing.assert_close(ours.float(), ppl_gen.log_weights(vae, guide, x, num_samples=100), rtol=1e-6, atol=1e-4)


def test_estimates_are_the_packages(mini: ModuleType) -> None:
    """Of a pair in float64: the same draws give the same ELBO, bounds, log p(x), error and effective sample size."""
    model = LinearGaussian()
    guide = ExactGuide(model, widen=1.5)
    x = torch.randn(10, 5, dtype=torch.float64)
    torch.manual_seed(1)
    log_w = mini.log_weights(model.model, guide.guide, x, 100)
    torch.manual_seed(1)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=100, ask_again=False)
    torch.testing.assert_close(log_w.mean(0), found.elbo)
    for k, bound in found.iwae.items():
        torch.testing.assert_close(mini.iwae_bound(log_w, k), bound)
    torch.testing.assert_close(mini.mc_variance(log_w), found.log_px_mc_var)
    torch.testing.assert_close(mini.effective_sample_size(log_w), found.ess)


def test_agrees_with_exact_values(mini: ModuleType) -> None:
    """On a linear Gaussian pair log p(x) is within 4 of its stated errors and the bias, and the exact posterior's gap
    is zero. False alarms: 6e-5 for each of 20 images."""
    model = LinearGaussian()
    x = 2 * torch.randn(20, 5, dtype=torch.float64)
    exact = model.log_px(x)
    log_w = mini.log_weights(model.model, ExactGuide(model, widen=1.5).guide, x, 2000)
    variance = mini.mc_variance(log_w)
    assert bool(((mini.iwae_bound(log_w, 2000) - exact).abs() < 4 * variance.sqrt() + variance / 2).all())
    assert bool((log_w.mean(0) < exact - 0.1).all())
    log_w = mini.log_weights(model.model, ExactGuide(model).guide, x, 10)
    torch.testing.assert_close(log_w, exact.expand(10, -1))
    # A pair of the file's own, in float32.
    x = torch.linspace(-3, 3, 7)
    log_w = mini.log_weights(mini.known_model, mini.known_guide, x, 2000)
    error = mini.iwae_bound(log_w, 2000) - dist.Normal(0.0, 2**0.5).log_prob(x)
    assert bool((error.abs() < 4 * mini.mc_variance(log_w).sqrt() + 1e-4).all())


def test_package_takes_its_classes(elsewhere: Path, call: Any) -> None:
    own = ["--guide", f"{FILE}:NormalGuide", "--data", "digits"]
    status, out, err = call(fit.command, f"{FILE}:VAE", *own, "--dry-run")
    assert status == 0, err
    assert "8 of 8 parameters have a gradient" in out


def test_runs_alone(tmp_path: Path) -> None:
    """As a script, without the package, in at most 200 lines."""
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200 and "import ppl_gen" not in text and "from ppl_gen" not in text
    code = f"import runpy, sys; sys.argv = ['mini.py']; main = runpy.run_path({str(FILE)!r})['main']; "
    code += "main(epochs=1, num_samples=20, num_images=10); print('ppl_gen' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "log p(x)" in done.stdout and done.stdout.endswith("False\n")
