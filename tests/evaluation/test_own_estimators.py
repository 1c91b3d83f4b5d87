"""Estimators of the user's own: as functions, classes and instances, from Python and on the command line."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import read, refused
from fits import FEW, SHORT, same_runs
from pairs import LinearGaussian
from torch import Tensor

import ppl_gen
from ppl_gen import calibrate, evaluate, fit
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.calibration import calibrate as rows_of
from ppl_gen.evaluation.own_estimators import find, of_log_weights, split
from ppl_gen.evaluation.use_options import CalibrateOptions
from ppl_gen.inference.importance import jackknife_bounds
from ppl_gen.inference.pareto import khat
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]
FILE = '''
import ppl_gen


class ShareOfSamples:
    """log p(x) from a share of the samples.

    :param share: share of the samples that are drawn.
    """

    def __init__(self, *, share: float = 0.5):
        self.share = share

    def estimate(self, model, guide, x, num_samples):
        return ppl_gen.log_weights(model, guide, x, num_samples=round(self.share * num_samples))


def all_samples(model, guide, x, num_samples):
    return ppl_gen.log_weights(model, guide, x, num_samples=num_samples).numpy()


def continuous(model, guide, x):
    if not hasattr(model, "psi"):
        raise ValueError("z is discrete")
    return ppl_gen.log_weights(model, guide, x, num_samples=30)


class NoMethod:
    pass
'''


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "run"
    return Run.fit("vae", data="digits", train_size=60, binarization="threshold", out=path, **FEW).path


@pytest.fixture
def run(fitted: Path, elsewhere: Path) -> Path:
    Path("mine.py").write_text(FILE, encoding="utf-8")
    return shutil.copytree(fitted, "run")


def test_log_weights_become_an_estimate() -> None:
    """log p(x), its errors, ESS and k-hat are those of the importance weights, and the mean is the ELBO."""
    log_w = torch.randn(60, 4, dtype=torch.float64)
    found = of_log_weights("mine", log_w)
    torch.testing.assert_close(found.log_px, log_w.exp().mean(0).log())
    corrected = found.log_px - found.log_px_bias
    torch.testing.assert_close(corrected, jackknife_bounds(log_w, 60))
    share = log_w.softmax(0)
    assert found.ess is not None and found.khat is not None
    torch.testing.assert_close(found.ess, 1 / share.square().sum(0))
    torch.testing.assert_close(found.khat, khat(log_w))
    assert (found.estimator, found.num_samples) == ("mine", 60)
    assert found.settings["elbo"] == pytest.approx(float(log_w.mean()))


def test_forms_of_an_estimator() -> None:
    """A class takes its options, an instance has them, a function has none; each is called with what it asks for."""
    model, x = LinearGaussian(3, 2), torch.randn(4, 3, dtype=torch.float64)
    asked = []

    class Mine:
        def __init__(self, *, shift: float = 1.0):
            self.shift = shift

        def estimate(self, model: Any, guide: Any, x: Tensor, *labels: Tensor, num_samples: int) -> Tensor:
            asked.append((len(labels), num_samples))
            return torch.full((num_samples, len(x)), self.shift)

    def plain(model: Any, guide: Any, x: Tensor) -> np.ndarray:
        return np.zeros((5, len(x)), np.float32)

    found = find([Mine, Mine(shift=2.0), plain], {"shift": 3.0})
    assert [each.name for each in found] == ["mine", "mine", "plain"]
    estimates = [each.estimate(model, None, x, num_samples=30) for each in found]
    assert [float(each.log_px[0]) for each in estimates] == pytest.approx([3.0, 2.0, 0.0])
    assert [each.num_samples for each in estimates] == [30, 30, 5] and estimates[0].log_px.dtype == torch.float64
    found[0].estimate(model, None, x, x, num_samples=7)
    assert asked == [(0, 30), (0, 30), (1, 7)]
    assert split("prior") == ("prior", []) and split([plain, "prior", "a.py:b"]) == (("prior", "a.py:b"), [plain])
    with pytest.raises(BadInput, match=r"estimator\.shfit: no estimator has this option; did you mean 'shift'"):
        find([Mine, plain], {"shfit": 3.0})
    with pytest.raises(BadInput, match=r"estimator\.shift: no estimator has this option$"):
        find([plain], {"shift": 3.0})


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (torch.zeros(4), r"no log weights: log_weights: must have the shape \[samples, images\], not \[4\]"),
        (
            torch.zeros(4, 9),
            r"returns log p\(x\) \[9\]; it must return log weights \[samples, 4\], or a ppl_gen.Estimate",
        ),
        (torch.zeros(0, 4), "has no samples"),
        (torch.zeros(1, 4), "has one sample for each image"),
        (None, "log_weights: "),
        (torch.tensor([[0.0, 1.0, math.nan, 0.0]] * 2), "is NaN for image 2, sample 0"),
        (torch.tensor([[0.0, math.inf, 1.0, 0.0]] * 2), r"is \+inf for image 1, sample 0"),
        (of_log_weights("mine", torch.zeros(30, 3, dtype=torch.float64)), r"returns log p\(x\) \[3\]; it must"),
        (
            replace(of_log_weights("mine", torch.zeros(30, 4)), log_px_mc_var=-torch.ones(4)),
            "log_px_mc_var must be at least 0",
        ),
    ],
)
def test_other_results_are_refused(result: Any, words: str) -> None:
    (mine,) = find([lambda model, guide, x: result], {})
    with pytest.raises(BadInput, match=words):
        mine.estimate(None, None, torch.zeros(4, 3), num_samples=30)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("importance", "'importance' is a name of the package; choose another"),
        ("a/b", "has the name 'a/b'; choose a word without /"),
        ("low_bias", "has the name 'low_bias'; choose a word without / that does not end in _mc_se or _bias"),
    ],
)
def test_names_that_files_cannot_hold(name: str, words: str) -> None:
    found = replace(of_log_weights("mine", torch.randn(30, 4)), estimator=name)
    (mine,) = find([lambda model, guide, x: found], {})
    with pytest.raises(BadInput, match=words):
        mine.estimate(None, None, torch.zeros(4, 3), num_samples=30)


def test_on_the_command_line(run: Path, call: Call) -> None:
    """Beside the package's estimates, with an option, and recorded so that it can be made again."""
    small = ("--num-images", "8", "--num-samples", "50")
    mine = ("--estimator", "importance", "mine.py:ShareOfSamples", "mine.py:all_samples", "--estimator.share", "0.6")
    status, out, err = call(evaluate.command, "run", *small, *mine)
    assert status == 0, err
    assert "share_of_samples, S = 30; effective " in out and "; mean log weight -" in out
    found = read("run/evaluation.json")
    assert found["log_px"]["estimator"] == "importance" and found["log_px_share_of_samples"]["num_samples"] == 30
    assert {"khat_share_of_samples", "khat_all_samples"} < found.keys()
    assert found["options"]["estimator"] == ["importance", "mine.py:ShareOfSamples", "mine.py:all_samples"]
    assert found["options"]["estimator_options"] == {"share": 0.6}
    every = {key: found[key] for key in found if key.startswith("log_px")}
    again: dict[str, Any] = {key: found["options"][key] for key in ("estimator", "estimator_options")}
    evaluation = Run.open("run").evaluate(num_images=8, num_samples=50, quiet=True, **again)
    assert {key: evaluation.summary[key] for key in every} == every
    # Without a name of the package, log p(x) is as by default.
    assert call(evaluate.command, "run", *small, "--estimator=mine.py:all_samples")[0] == 0
    assert read("run/evaluation.json")["log_px"]["estimator"] == "quadrature"
    assert ppl_gen.Comparison(["run"]).rows[0].log_px is not None


class Groups:
    """An objective: the mean of bounds of groups of samples."""

    def __init__(self, *, num_particles: int = 4, groups: int = 2):
        self.num_particles, self.groups = num_particles, groups

    def surrogate(self, terms: Any) -> Tensor:
        groups = terms.log_weight.unflatten(0, (self.groups, -1)) if len(terms.log_weight) > 1 else terms.log_weight
        bound: Tensor = groups.logsumexp(0).mean(0) if groups.dim() == 3 else groups.mean(0)
        return bound


class Doubled:
    """An estimator with twice the samples."""

    def __init__(self, *, times: int = 2):
        self.times = times

    def estimate(self, model: Any, guide: Any, x: Tensor, num_samples: int) -> Tensor:
        return ppl_gen.log_weights(model, guide, x, num_samples=self.times * num_samples)


def plain(model: Any, guide: Any, x: Tensor) -> Tensor:
    return ppl_gen.log_weights(model, guide, x, num_samples=25)


def test_an_objective_and_estimators_from_python(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted, evaluated at the end, interrupted and continued, extended, found again, and compared. Training draws the
    same numbers with and without estimators."""
    few: dict[str, Any] = FEW | {"data": "digits", "train_size": 60, "binarization": "threshold", "epochs": 1}
    mine: dict[str, Any] = {"objectives": [Groups], "estimator": [Doubled, plain], "estimator_options": {"times": 3}}
    del few["quiet"]
    once = ppl_gen.Comparison.fit("vae", **mine, **few, out="runs", quiet=True)
    (row,) = once.rows
    assert {name: mean.mean for name, mean in row.own.items()}.keys() == {"doubled", "plain"}
    path = Path(row.runs[0])
    recorded, found = read(f"{path}/config.json"), read(f"{path}/evaluation.json")
    assert [each.rpartition(":")[2] for each in recorded["estimator"]] == ["Doubled", "plain"]
    assert recorded["estimator_options"] == {"times": 3} and len(recorded["estimator_sha256"]) == 2
    assert found["log_px_doubled"]["num_samples"] == 60 and found["log_px_plain"]["num_samples"] == 25
    without = Run.fit("vae", objective=Groups, out="without", quiet=True, **few)
    assert same_runs(Run.open(path), without)
    # Nothing is fitted again; other options are told.
    assert ppl_gen.Comparison.fit("vae", **mine, **few, out="runs", quiet=True).to_json() == once.to_json()
    with pytest.raises(BadInput, match="was made with other options: times is 3, not 2"):
        ppl_gen.Comparison.fit("vae", **mine | {"estimator_options": {}}, **few, out="runs", quiet=True)
    # A run that lost its evaluation gets the same again, from the estimators that it was fitted with.
    (path / "evaluation.json").unlink()
    with pytest.raises(BadInput, match=r"was fitted with the estimator .*Doubled .*plain"):
        Run.open(path, objective=Groups).resume(quiet=True)
    with pytest.raises(BadInput, match=r"estimator .*plain: .* was fitted with .*Doubled .*plain; give it here"):
        Run.open(path, objective=Groups, estimator=plain).resume(quiet=True)
    again = Run.open(path, objective=Groups, estimator=[Doubled, plain]).resume(quiet=True)
    assert {**again.evaluation.summary, "seconds": 0} == {**found, "seconds": 0}  # type: ignore[union-attr]
    assert again.resume(2, quiet=True).evaluation["log_px_doubled"].settings["num_samples"] == 60  # type: ignore[index]
    with pytest.raises(BadInput, match=r"estimator .*plain: without was fitted with none; leave it out"):
        Run.open("without", objective=Groups, estimator=plain).resume(quiet=True)


def test_a_start_from_a_run_names_its_estimators_anew(run: Path, call: Call) -> None:
    """A run directory never runs code."""
    small = ("--data", "digits", *SHORT[2:], "--hidden-dims", "4", "--latent-dim", "1")
    mine = ("--estimator", "importance", "mine.py:ShareOfSamples", "mine.py:all_samples")
    assert call(fit.command, "vae", *small, "--out", "first", *mine, "--objective", "elbo")[0] == 0
    assert read("first/evaluation.json")["log_px"]["estimator"] == "importance"
    assert read("first/config.json")["estimator_options"] == {"share": 0.5}
    assert call(fit.command, "--init-from", "first", "--out", "second", "--epochs", "1")[0] == 0
    assert read("second/config.json")["estimator"] == []
    assert not [key for key in read("second/evaluation.json") if "samples" in key and key.startswith("log_px_")]
    status, _, err = call(fit.command, "--resume", "first")
    again = "name it again: --estimator mine.py:ShareOfSamples mine.py:all_samples"
    assert status == 2 and err == f"error: first: was fitted with the estimator {again[27:]}; {again}\n"
    assert call(fit.command, "--resume", "first", *mine)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.py:X",), "--estimator 'nowhere.py': no such file"),
        (("best",), "--estimator best: choose from auto, exact, quadrature, importance, annealed, prior"),
        (("exact",), "--estimator exact: a latent site of VAE has no finite support"),
        (("mine.py:continuous", "--estimator.share", "1"), "Unrecognized options: --estimator.share"),
        (("mine.py:ShareOfSamples", "--estimator.share", "-1"), "--estimator mine.py:ShareOfSamples: fails: BadInput"),
        (("mine.py:NoMethod",), "must be a function, or have a method 'estimate(self, model, guide, x, num_samples)'"),
    ],
)
def test_a_fit_tries_its_estimators_first(run: Path, call: Call, arguments: tuple[str, ...], words: str) -> None:
    """Before a step is taken or a file written."""
    refused(call, fit.command, "vae", *SHORT, "--out", "new", "--estimator", *arguments, words=[words])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("mine.py:shares",),
            "mine.py has no function or class 'shares'; known: NoMethod, ShareOfSamples, all_samples, continuous",
        ),
        (("mine.py:NoMethod",), "must be a function, or have a method 'estimate(self, model, guide, x, num_samples)'"),
        (("mine.py:ShareOfSamples", "--estimator.shar", "1"), "did you mean --estimator.share"),
        (("mine.py:ShareOfSamples", "--estimator.share", "x"), "--estimator.share"),
        (("mine.py:all_samples", "--gaps"), "--gaps: leave out --estimator mine.py:all_samples"),
    ],
)
def test_refused_in_one_line(run: Path, call: Call, arguments: tuple[str, ...], words: str) -> None:
    status, out, err = call(evaluate.command, "run", "--num-images", "4", "--estimator", *arguments)
    assert status == 2 and out == "" and err.count("\n") == 1 and words in err, err


def test_beside_the_others_in_calibrate(elsewhere: Path, call: Call) -> None:
    """The other rows are as without it. A model that an estimator fails on is left out; one that fails on every model
    is bad input."""
    Path("mine.py").write_text(FILE + "\n\ndef never(model, guide, x):\n    raise ValueError('no')\n", encoding="utf-8")
    small = ("--repetitions", "2", "--num-images", "1", "--num-samples", "25", "--num-temperatures", "3")
    status, out, err = call(calibrate.command, *small, "--estimator", "mine.py:continuous")
    assert status == 0 and "belief net: --estimator mine.py:continuous: fails: ValueError: z is discrete" in err
    assert out.count("continuous") == 1
    tiny: dict[str, Any] = {"repetitions": 2, "num_images": 1, "num_samples": 25, "num_temperatures": 3}
    with_own, without = (
        {(row.model, row.estimator): row.rmse for row in rows_of(CalibrateOptions(**tiny, **own), quiet=True)}
        for own in ({"estimator": ("mine.py:ShareOfSamples",)}, {})
    )
    assert with_own.keys() - without == {(name, "share_of_samples") for name in ("factor analysis", "belief net")}
    assert without.items() <= with_own.items()
    status, _, err = call(calibrate.command, *small, "--estimator", "mine.py:never")
    assert status == 2 and "error: --estimator mine.py:never: fails: ValueError: no" in err
