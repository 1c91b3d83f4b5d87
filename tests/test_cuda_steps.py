"""Where there is a GPU: steps that are recorded as a CUDA graph are the steps of the code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_gen import fit
from ppl_gen.training.recorded import RecordedGradient

Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
QUICK = ("--data", "digits", "--train-size", "203", "--num-samples", "50", "--epochs", "3", "--batch-size", "50")
NETS = ("--hidden-dims", "16", "--latent-dim", "2")
UNITS = ("--latent-dims", "6", "4")
REPARAMETRIZED = {"elbo": 1, "elbo-analytic-kl": 2, "stl": 1, "beta": 1, "iwae": 3, "miwae": 4, "piwae": 4, "ciwae": 3}
REPARAMETRIZED |= {"dreg": 3, "renyi": 3}
OF_ANY_GUIDE = {"vimco": 3, "rws": 3, "wake-sleep": 3, "rloo": 3, "nvil": 1}
DISCRETE = {"elbo": 1, "disarm": 2, "arm": 1, "muprop": 1, "rebar": 1, "relax": 1, "reinmax": 1, "straight-through": 1}
DISCRETE |= {"straight-through-gumbel": 1, "gumbel-softmax": 1, "concrete": 1}

NOT_RECORDED = {"--kl-warmup", "student-t", "factor-analysis", "gan"}


@pytest.mark.parametrize(
    "options",
    [
        *(("vae", *NETS, "--objective", name, "--num-particles", f"{k}") for name, k in REPARAMETRIZED.items()),
        *(("vae", *NETS, "--guide", name) for name in ("flow", "multivariate-normal", "mixture", "student-t")),
        ("vae", *NETS, "--optimizer", "muon", "--clip-grad-norm", "1"),
        ("vae", *NETS, "--kl-warmup", "2"),
        ("vae", *NETS, "--likelihood", "continuous-bernoulli", "--binarization", "none"),
        *(
            ("hierarchical-belief-net", *UNITS, "--objective", name, "--num-particles", f"{k}")
            for name, k in (OF_ANY_GUIDE | DISCRETE).items()
        ),
        ("hierarchical-belief-net", *UNITS, "--categories", "3", "--objective", "rloo", "--num-particles", "3"),
        ("belief-net", "--latent-dim", "6", "--guide", "bernoulli", "--objective", "vimco", "--num-particles", "3"),
        ("factor-analysis",),
        ("gan",),
    ],
    ids=lambda options: "-".join(options),
)
def test_recorded_steps(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    """The losses of a run that records its steps, and of one that does not, from the same noise. The last batch of an
    epoch, of 3 images, is smaller. Rounding grows from step to step."""
    replay, count = RecordedGradient._replay, 0

    def counted(self: RecordedGradient, batch: Any) -> None:
        nonlocal count
        count += 1
        replay(self, batch)

    monkeypatch.setattr(RecordedGradient, "_replay", counted)
    found, replays = [], []
    for recorded in (True, False):
        with monkeypatch.context() as patched:
            if not recorded:
                patched.setattr("ppl_gen.training.loop.may_be_recorded", lambda *parts: False)
            count = 0
            status, _, err = call(fit.command, *options, *QUICK, "--device", "cuda", "--out", f"run{recorded}")
            assert status == 0, err
            lines = Path(f"run{recorded}/metrics.jsonl").read_text(encoding="utf-8").splitlines()
            found.append([json.loads(line).get("loss") for line in lines][1:])
            replays.append(count)
    # 4 whole batches in each of 3 epochs, and the comparison of the record.
    assert replays == [0 if NOT_RECORDED & set(options) else 13, 0]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
