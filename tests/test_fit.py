"""`fit`: its options, what it prints, and its exit status."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fits import QUICK
from own_classes import GUIDE

from ppl_gen import fit
from ppl_gen.comparison import Comparison

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--network", "conv", "--channels", "4", "8", "--activation", "tanh"),
        ("--objective", "elbo-analytic-kl", "--num-particles", "3", "--kl-warmup", "1"),
        ("--binarization", "static", "--schedule", "one-cycle", "--clip-grad-norm", "10"),
        ("--binarization", "threshold", "--latent-dim", "1", "--no-init-output-bias", "--guide.input-dropout", "0.1"),
        ("--binarization", "none"),
        ("--binarization", "none", "--likelihood", "continuous-bernoulli"),
        ("--binarization", "none", "--likelihood", "normal", "--guide.hidden-dims", "8", "8"),
        ("--train-size", "1497"),
        ("--hidden-dims",),
    ],
)
def test_options(elsewhere: Path, call: Call, arguments: tuple[str, ...]) -> None:
    status, out, err = call(fit.command, "vae", *QUICK, *arguments, "--out", "run")
    assert status == 0, err
    summary = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert math.isfinite(summary["log_px"]["mean"])
    grey = "none" in arguments
    kind = "density" if "--likelihood" in arguments else "cross-entropy" if grey else "probability"
    assert summary["observation"] == kind
    assert ("do not bound the log-probability" in out) == (kind == "cross-entropy")
    assert ("cannot be compared with probabilities" in out) == (kind == "density")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(("validation" in line) == ("1497" not in arguments) for line in lines)


def test_levels_have_bits_per_dimension(elsewhere: Path, call: Call) -> None:
    """Beside nats, in what is printed and in each file: for probabilities of levels, and not for densities."""
    grey = ("--binarization", "none", "--hidden-dims", "8", "--latent-dim", "4")
    for likelihood in ("categorical", "normal"):
        status, out, err = call(fit.command, "vae", *QUICK, *grey, "--likelihood", likelihood, "--out", likelihood)
        assert status == 0, err
        summary = json.loads(Path(likelihood, "evaluation.json").read_text(encoding="utf-8"))
        page = Path(likelihood, "report.html").read_text(encoding="utf-8")
        compared, levels = Comparison([Path(likelihood)]), likelihood == "categorical"
        assert ("bits per dimension" in out, "In bits per dimension" in page) == (levels, levels)
        assert ("bits_per_dim" in summary, "bits/dim" in str(compared)) == (levels, levels)
        assert summary["observation"] == ("probability" if levels else "density")
        if levels:
            found = summary["bits_per_dim"]["log_px"]["mean"]
            assert found == pytest.approx(-summary["log_px"]["mean"] / (64 * math.log(2)))
            assert compared.frame["bits_per_dim"].item() == pytest.approx(found)
    status, _, err = call(fit.command, "vae", *QUICK, "--likelihood", "categorical", "--out", "refused")
    assert status == 2 and "use --binarization none" in err and not Path("refused").exists()


def test_help_shows_a_guides_own_options(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_guide.py").write_text(GUIDE)
    with pytest.raises(SystemExit):
        fit.command(["vae", "--guide", "my_guide.py:MyGuide", "--help"])
    out = capsys.readouterr().out
    assert "--guide.scale FLOAT" in out and "standard deviation of everything" in out and "--guide.wide" in out
    assert "--guide.input-dropout" not in out and "--latent-dim" in out and "--batch-size" in out


def test_dry_run_writes_nothing(elsewhere: Path, call: Call) -> None:
    status, out, _ = call(fit.command, "vae", "--data", "digits", "--dry-run")
    assert status == 0 and "8 of 8 parameters have a gradient" in out
    assert list(elsewhere.iterdir()) == []


def _process(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_exit_status_of_the_modules(elsewhere: Path) -> None:
    done = _process("ppl_gen.fit", "vae", *QUICK, "--out", "run", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    done = _process("ppl_gen.evaluate", "run", "--num-images", "5", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    done = _process("ppl_gen.evaluate", "nowhere", cwd=elsewhere)
    assert done.returncode == 2 and done.stderr == "error: nowhere: no such run directory\n" and done.stdout == ""
