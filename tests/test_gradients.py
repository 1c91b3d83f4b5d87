"""`gradients`: what is typed, what is written, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import REFUSED, read, refused

import ppl_gen
from ppl_gen import fit, gradients
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.bernoulli import Bernoulli

Call = Callable[..., tuple[int, str, str]]
FEW = ("--num-images", "10", "--draws", "20", "--warm-up", "2")

NET: dict[str, Any] = {"latent_dim": 3, "data": "digits", "train_size": 150, "epochs": 1, "num_samples": 20}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A belief net of 3 units with a guide that samples them."""
    path = tmp_path_factory.mktemp("runs") / "net"
    ppl_gen.Run.fit("belief-net", guide="bernoulli", out=path, quiet=True, **NET)
    return path


@pytest.fixture
def run(net: Path, elsewhere: Path) -> Path:
    shutil.copytree(net, "net")
    return elsewhere


@pytest.mark.painted
def test_every_objective_that_a_run_can_have(run: Path, call: Call) -> None:
    status, out, err = call(gradients.command, "net", *FEW)
    assert status == 0, err
    assert "written to net/gradients.json and figures/gradients.png" in out
    assert (Path("net") / "figures" / "gradients.png").stat().st_size > 10_000
    found = read("net/gradients.json")
    assert (found["states"], found["draws"], found["num_images"]) == (8, 20, 10)
    (point,) = found["points"]
    assert (point["at"], point["step"]) == ("trained", 2) and point["norm"].keys() == {"guide", "model"}
    rows = {row["objective"]: row for row in point["rows"]}
    unbiased = ["arm", "disarm", "elbo", "muprop", "nvil", "rebar", "relax", "rloo"]
    biased = ["concrete", "gumbel-softmax", "reinmax", "straight-through", "straight-through-gumbel"]
    assert list(rows) == sorted(unbiased + biased) and all(name in out for name in rows)
    # At a rate of 1 %, and the seed is fixed.
    assert not any(rows[name][part]["biased"] for name in unbiased for part in ("guide", "model"))
    assert all(row["guide"]["variance"] > 0 and row["seconds"] > 0 for row in rows.values())
    assert rows["disarm"]["guide"]["variance"] < rows["arm"]["guide"]["variance"]
    assert rows["straight-through"]["guide"]["variance"] < rows["elbo"]["guide"]["variance"]
    assert "Squared bias against variance" in (Path("net") / "report.html").read_text(encoding="utf-8")


def test_named_objectives_with_options(run: Path) -> None:
    """A gradient of more samples varies less, and so does one at a higher temperature."""
    named = ("rloo:2", "rloo:8", "gumbel-softmax,temperature=0.1", "gumbel-softmax:1,temperature=2")
    found = ppl_gen.Run.open("net").gradients(objectives=named, num_images=10, draws=60, warm_up=0, quiet=True)
    few, many, cold, warm = (row["guide"] for row in found.summary["points"][0]["rows"])
    assert many["variance"] < 0.4 * few["variance"] and warm["variance"] < cold["variance"]
    assert many["cosine"] > few["cosine"]


def test_the_same_seed_gives_the_same_numbers(run: Path) -> None:
    """Before and after training; and the weights stay as they are."""
    opened = ppl_gen.Run.open("net")
    before = [each.detach().clone() for each in opened.fitted.trained.parameters()]
    options: dict[str, Any] = {"num_images": 5, "draws": 20, "warm_up": 1, "initial": True, "objectives": ("nvil:2",)}
    first, again = (opened.gradients(quiet=True, **options) for _ in range(2))
    for one, other in zip(first.summary["points"], again.summary["points"], strict=True):
        assert one["rows"][0] | {"seconds": 0} == other["rows"][0] | {"seconds": 0} and one["elbo"] == other["elbo"]
    assert all(torch.equal(a, b) for a, b in zip(before, opened.fitted.trained.parameters(), strict=True))
    trained, initial = first.summary["points"]
    assert (trained["at"], initial["at"], initial["step"]) == ("trained", "initial", 0)
    assert initial["elbo"] != trained["elbo"]
    text = str(first)
    assert text.count("nvil:2") == 4 and text.count("before training") == text.count("after 2 steps") == 2


def test_an_objective_of_ones_own(run: Path, call: Call) -> None:
    """Twice the gradient: its squared bias is the squared length of the gradient, which is the unit."""
    Path("mine.py").write_text(OWN, encoding="utf-8")
    many = ("--draws", "100", "--num-images", "5", "--objectives", "mine.py:Twice", "rloo")
    status, _, err = call(gradients.command, "net", *many)
    assert status == 0, err
    mine, rloo = (row["guide"] for row in read("net/gradients.json")["points"][0]["rows"])
    assert mine["biased"] and not rloo["biased"] and abs(mine["bias"] - 1) < 5 * mine["bias_se"]


OWN = """
from ppl_gen.inference.densities import minus_leave_one_out_mean

class Twice:
    draws, elbo_gradient, num_particles = "detached", "biased", 4

    def surrogate(self, terms):
        score = minus_leave_one_out_mean(terms.log_weight) * terms.log_guide
        return 2 * (terms.log_likelihood + terms.log_prior + score).mean(0)
"""


def test_a_gradient_that_is_no_number(run: Path, call: Call) -> None:
    Path("mine.py").write_text(OWN.replace("2 * (", "float('nan') * ("), encoding="utf-8")
    status, _, err = call(gradients.command, "net", *FEW, "--objectives", "mine.py:Twice")
    assert status == 2 and not Path("net/gradients.json").exists()
    assert err.endswith("error: --objectives mine.py:Twice: its gradient is infinite or NaN; leave it out\n")


@pytest.mark.drawn
def test_a_guide_that_is_the_prior_of_the_model(elsewhere: Path, call: Call) -> None:
    """It has no parameters of its own: the picture is of the model's gradient."""
    net = ("structured-belief-net", "--data", "digits", "--train-size", "100", "--latent-dims", "3", "--epochs", "1")
    assert call(fit.command, *net, "--num-samples", "5", "--out", "net")[0] == 0
    status, out, err = call(gradients.command, "net", *FEW, "--objectives", "elbo", "rloo:2")
    assert status == 0, err
    (point,) = read("net/gradients.json")["points"]
    assert point["norm"].keys() == {"model"} and "gradient of the model's parameters" in out
    assert Path("net/figures/gradients.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("net", "--objectives", "rlo"), ["unknown objective 'rlo'; did you mean 'rloo'"]),
        (("net", "--objectives", "vimco:5"), ["--objectives vimco:5", "not said to be that of the ELBO"]),
        (("net", "--objectives", "rloo:1"), ["rloo needs at least 2 samples"]),
        (("net", "--objectives", "rloo:x"), ["--objectives rloo:x", "as in rloo:4"]),
        (("net", "--objectives", "rebar,temperature"), ["as in gumbel-softmax,temperature=0.1"]),
        (("net", "--objectives", "rebar,heat=1"), ["has no such option"]),
        (("net", "--objectives", "rebar,temperature=cold"), ["'cold'", "--objective.temperature"]),
        (("net", "--objectives", "rebar,temperature=-1"), ["--objective.temperature -1.0: must be above 0"]),
        (("net", "--draws", "3"), ["--draws 3: must be at least 20"]),
        (("net", "--false-alarm-rate", "1"), ["--false-alarm-rate 1"]),
        *[(arguments, words) for arguments, words in REFUSED if "vae" not in arguments],
    ],
)
def test_refused(run: Path, call: Call, arguments: tuple[str, ...], words: list[str]) -> None:
    refused(call, gradients.command, *arguments, words=words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "vae",
            ["gradients: needs Bernoulli or one-hot categorical or categorical latent sites, but 'z' of Normal is"],
        ),
        ("belief-net", ["gradients: Enumerated samples nothing", "use a run with another guide"]),
    ],
)
def test_other_pairs_are_refused(three_runs: Path, call: Call, name: str, words: list[str]) -> None:
    refused(call, gradients.command, name, words=words)


def test_an_instance_has_no_first_weights(elsewhere: Path) -> None:
    guide = Bernoulli(64, torch.full((64,), 0.5), 3, "z")
    fitted = ppl_gen.Run.fit("belief-net", guide=guide, out="run", quiet=True, **NET)
    with pytest.raises(BadInput, match="the guide is an instance, whose first weights are not known"):
        fitted.gradients(initial=True, num_images=5, draws=20, warm_up=0, objectives=("rloo",), quiet=True)
