"""The pictures of a run: which there are, with what in them, and words for each."""

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import FEW, PLAIN
from fits import QUICK as SMALL_FIT
from matplotlib.figure import Figure

import ppl_gen
from ppl_gen import fit
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.inference.modes import evaluating
from ppl_gen.report.captions import captions
from ppl_gen.report.pictures import latent_space, of_evaluation, through_training
from ppl_gen.run import Run

PAIR = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Unseen(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(4, data_dim)

    def prior(self):
        return dist.Normal(torch.zeros(4), 1.0).to_event(1)

    def likelihood(self, z):
        return dist.TransformedDistribution(dist.Normal(self.net(z), 1.0).to_event(1), [])  # has no mean

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", self.likelihood(pyro.sample("z", self.prior())), obs=x)


class Guide(nn.Module):
    def __init__(self, data_dim, model):
        super().__init__()
        assert isinstance(model, Unseen)
        self.net = nn.Linear(data_dim, 4)

    def encode(self, x):
        return self.net(x)

    def posterior(self, context):
        return dist.Normal(context, 1.0).to_event(1)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))
"""

Call = Callable[..., tuple[int, str, str]]
QUICK = ("--data", "digits", "--train-size", "200", "--epochs", "1", "--num-samples", "30", "--out", "run")
LATENT = {"aggregate_posterior", "interpolations", "latent_space"}
ALWAYS = {"learning_curves", "samples", "through_training"}
BOUND = {"how_far", "gap_histogram", "reconstructions"}


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        (("vae", "--latent-dim", "2"), LATENT | BOUND | {"posteriors", "manifold"}),
        (("vae", "--latent-dim", "1"), BOUND | LATENT - {"latent_space"}),
        (("vae", "--latent-dim", "4", "--guide", "flow", "--prior", "flow"), LATENT | BOUND),
        (("factor-analysis", "--latent-dim", "4"), LATENT | BOUND),
        (("hierarchical-vae", "--latent-dims", "3", "2", "--hidden-dims", "8", "8"), BOUND),
        (("mixture", "--num-components", "3"), {"components"}),
        (("belief-net", "--latent-dim", "3"), {"posterior", "weights"}),
    ],
)
def test_which_there_are(elsewhere: Path, call: Call, options: tuple[str, ...], pictures: set[str]) -> None:
    status, _, err = call(fit.command, *options, *QUICK)
    assert status == 0, err
    drawn = {path.stem for path in (elsewhere / "run" / "figures").iterdir()}
    assert drawn == pictures | ALWAYS
    assert (elsewhere / "run" / "explorer.json").exists() == ("latent_space" in pictures)
    assert "no picture of" not in err


@pytest.mark.drawn
@pytest.mark.parametrize(("units", "names"), [("4", ("latent_space",)), ("2", ("latent_space", "manifold"))])
def test_the_planes_of_pictures_and_explorer_are_the_same(
    elsewhere: Path, call: Call, units: str, names: tuple[str, ...]
) -> None:
    """Of more than two units, the most active one goes across and the next one up; all axes of z are the same. (Seed
    1's first two units of four are not in the order of their numbers.)"""
    options = ("--data", "digits", "--train-size", "200", "--epochs", "3", "--num-samples", "30", "--seed", "1")
    assert call(fit.command, "vae", "--latent-dim", units, *options, "--out", "run")[0] == 0
    fitted = Fitted.open("run")
    with evaluating(fitted.model, fitted.guide):
        drawn = dict(latent_space.draw(fitted))
    explored = fitted.directory.read_json("explorer.json")
    assert explored is not None
    assert (explored["order"][:2] == sorted(explored["order"][:2])) == (units == "2")
    across, up = explored["order"][:2]
    limits = drawn["aggregate_posterior"].axes[0].get_xlim()
    for name in names:
        axes = drawn[name].axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == (f"z[{across}]", f"z[{up}]")
        assert axes.get_xlim() == axes.get_ylim() == limits


@pytest.mark.drawn
def test_drawing_writes_no_file(elsewhere: Path, call: Call) -> None:
    """Pictures are figures until they are saved."""
    assert call(fit.command, "vae", "--latent-dim", "2", "--hidden-dims", "8", *QUICK)[0] == 0
    run = RunDirectory.open(Path("run"))
    for path in (run.path / "figures").iterdir():
        path.unlink()
    drawn = dict(of_evaluation(run))
    assert set(drawn) == {"how_far", "gap_histogram"}
    assert all(isinstance(figure, Figure) for figure in drawn.values())
    assert list((run.path / "figures").iterdir()) == []


# Words ---------------------------------------------------------------------------------------------------------


def names_in(path: Path) -> set[str]:
    """The names of the pictures that a file draws: literals that are saved, yielded, or keys of a model's own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "save":
            names |= {each.value for each in node.args[1:2] if isinstance(each, ast.Constant)}
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and path.parent.name == "pictures":
            names |= {each.value for each in node.value.elts[:1] if isinstance(each, ast.Constant)}
        elif isinstance(node, ast.FunctionDef) and node.name == "pictures" and path.parent.name == "models":
            keys = [key for each in ast.walk(node) if isinstance(each, ast.Dict) for key in each.keys]
            names |= {key.value for key in keys if isinstance(key, ast.Constant)}
    return names


def test_every_picture_has_a_caption_and_an_alternative_text() -> None:
    """And every caption a picture."""
    root = Path(ppl_gen.__file__).parent
    drawn = set().union(*(names_in(path) for path in root.rglob("*.py")))
    known = captions()
    assert drawn == set(known) and len(drawn) == 25
    assert all(len(caption.text) > 10 and len(caption.alt) > 10 for caption in known.values())


def test_captions_have_the_numbers_of_the_run() -> None:
    terms = {"elbo": -8.0, "reconstruction": -7.0, "kl": 1.0}
    lines = [{"epoch": 0, "train": terms}, {"epoch": 1, "train": terms | {"elbo": None}}]
    assert "; train ELBO -8.00 before training, nan at its end" in captions(lines)["learning_curves"].alt
    adversarial = [{"epoch": 0, "train": {"value": 0.1, "d_real": 0.5, "d_fake": 0.5}}]
    assert captions(adversarial)["learning_curves"] != captions()["learning_curves"]
    mean = {"mean": -3.0, "num_samples": 50}
    summary = {"iwae": {}, "elbo": {"mean": -4.0}, "log_px": mean, "gap": {"mean": 1.0}}
    found = captions((), summary)
    assert found["gap_histogram"].alt.endswith("; its mean is 1.00 nats")
    assert list(found) == list(captions(lines)) == list(captions())


@pytest.mark.drawn
def test_pictures_where_no_validation_split_is_left(elsewhere: Path, call: Call) -> None:
    status, _, err = call(fit.command, "vae", *SMALL_FIT, "--train-size", "1497", "--latent-dim", "2", "--out", "run")
    assert status == 0, err
    assert Path("run/figures/latent_space.png").exists() and Path("run/report.html").exists()


@pytest.mark.filterwarnings("ignore:.*grey values under")
def test_a_pair_of_one_file_that_cannot_be_drawn(elsewhere: Path, call: Call) -> None:
    """Both classes are of one module; and what cannot be drawn is said, not the end of the run."""
    Path("pair.py").write_text(PAIR)
    named = ("pair.py:Unseen", "--guide", "pair.py:Guide")
    status, _, err = call(fit.command, *named, *PLAIN, "--binarization", "dequantized", "--out", "run")
    assert status == 0, err
    for what in ("samples", "reconstructions", "the latent space"):
        assert f"warning: no picture of {what}: " in err
    assert Path("run/report.html").is_file() and Path("run/figures/gap_histogram.png").is_file()


@pytest.mark.parametrize("count", [5, 10, 20])
@pytest.mark.filterwarnings("error:.*degrees of freedom", "error:invalid value")
def test_pictures_of_very_few_test_images(elsewhere: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    """One of them is shown, or nothing is said."""
    grey = torch.rand((count, 4, 5), generator=torch.Generator().manual_seed(0))
    for units in (1, 2):
        run = Run.fit("vae", data=grey, **FEW | {"latent_dim": units})
        assert {"samples", "reconstructions"} <= set(run.figures)
        assert ("latent_space" in run.figures) == (units == 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arrays",
    [
        {"epoch_0": np.zeros((0, 64))},
        {"epoch_0": np.zeros((10, 0))},
        {"epoch_0": np.zeros((10, 63))},
        {"epoch_0": np.zeros(())},
        {"epoch_0": np.zeros((10, 64)), "epoch": np.zeros((10, 64))},
    ],
)
def test_damaged_samples_are_left_out_in_one_line(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, np.ndarray]
) -> None:
    run = Run.open(shutil.copytree(fitted, tmp_path / "run"))
    np.savez(run.path / "samples.npz", **arrays)  # type: ignore[arg-type]
    assert list(through_training.draw(run.fitted)) == []
    name = list(arrays)[-1]
    told = f"samples.npz: damaged ({name} holds no images of 64 pixels from an epoch)\n"
    assert capsys.readouterr().err == f"warning: {run.path}/{told}"
