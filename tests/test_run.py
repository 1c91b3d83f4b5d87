"""A run from Python: classes, instances and arrays handed over, training for longer, and ending it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import FEW, Laplace, same_runs, weights
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import ppl_gen
from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation import gap_split
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.inference.objectives.elbo import Elbo
from ppl_gen.models.vae import VAE
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


def test_a_class_and_a_tensor(elsewhere: Path, x: Tensor) -> None:
    """The run records both by name and hash, opens without them for what needs none, and with them for the rest."""
    run = Run.fit("vae", guide=Laplace, data=x, guide_options={"units": 4}, **FEW)
    assert run.path == Path("runs/vae-laplace-array-1") and isinstance(run.guide, Laplace)
    assert run.guide.net[0].out_features == 4
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    assert config["guide"] == "fits:Laplace" and config["guide_options"] == {"units": 4}
    assert config["data_name"] == "array" and len(config["data_sha256"]) == len(config["guide_sha256"]) == 64
    assert (len(run.data.train), len(run.data.validation), len(run.data.test)) == (160, 20, 20)
    assert run.data.shape == (4, 5)

    again = Run.open(run.path)
    assert again.evaluation is not None and run.evaluation is not None
    assert again.evaluation.summary == run.evaluation.summary and again.metrics["epoch"].tolist() == [0, 1, 2]
    assert again.config.training.epochs == 2
    with pytest.raises(BadInput, match="was fitted with the guide fits:Laplace"):
        _ = again.model
    with pytest.raises(BadInput, match="pass it again"):
        _ = Run.open(run.path, guide=Laplace).data
    with pytest.raises(BadInput, match="was fitted to other images"):
        _ = Run.open(run.path, guide=Laplace, data=x.flip(0)).data
    with pytest.raises(BadInput, match="was fitted to other images"):
        Run.open(run.path, guide=Laplace, data=x.flip(0)).resume(epochs=9)
    whole = Run.open(run.path, guide=Laplace, data=x.numpy())
    assert torch.equal(whole.guide.net[0].weight, run.guide.net[0].weight)
    model, guide, data, _ = ppl_gen.load(run.path, Laplace, data=x)
    assert torch.equal(guide.net[0].weight, run.guide.net[0].weight) and len(data.test) == 20
    assert type(model).__name__ == "VAE"


def test_a_class_that_no_module_has(elsewhere: Path, x: Tensor) -> None:
    """As one that is defined in a notebook's cell: its methods' source is what is hashed."""

    class Inner(Laplace):
        def guide(self, x: Tensor) -> None:
            super().guide(x)

    run = Run.fit("vae", guide=Inner, data=x, **FEW)
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    assert config["guide"] == "class:Inner" and len(config["guide_sha256"]) == 64
    with pytest.raises(BadInput, match=r"it was class Inner of a Python session: Run.open\(…, guide=Inner\)"):
        _ = Run.open(run.path, data=x).guide
    assert isinstance(Run.open(run.path, guide=Inner, data=x).guide, Inner)


def test_instances_are_trained_in_place(elsewhere: Path, x: Tensor) -> None:
    """From the weights that they have; and weights are loaded into those that are given again."""
    torch.manual_seed(3)
    model, guide = VAE((4, 5), latent_dim=1, hidden_dims=(8,)), Laplace(20, 1)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {name: value for name, value in FEW.items() if name in ("epochs", "num_samples", "quiet")}
    run = Run.fit(model, guide=guide, data=x, **options)
    assert run.model is model and run.guide is guide
    assert all(not torch.equal(first[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(BadInput, match="instance VAE of a Python session"):
        _ = Run.open(run.path).model
    others = VAE((4, 5), latent_dim=1, hidden_dims=(8,)), Laplace(20, 1)
    again = Run.open(run.path, model=others[0], guide=others[1], data=x)
    assert again.model is others[0]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others[0].state_dict().items())
    with pytest.raises(BadInput, match="does not match"):
        _ = Run.open(run.path, model=VAE((4, 5), latent_dim=3), guide=Laplace(20, 3), data=x).model
    with pytest.raises(BadInput, match="is an instance and takes no options; leave out latent_dim"):
        Run.fit(model, guide=guide, data=x, model_options={"latent_dim": 4}, **options)


def test_the_first_weights_of_an_instance_are_those_at_the_call(elsewhere: Path, x: Tensor) -> None:
    torch.manual_seed(3)
    model, guide = VAE((4, 5), latent_dim=1, hidden_dims=(8,)), Laplace(20, 1)
    start = {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    met: list[bool] = []

    def look(run: Run, metrics: dict[str, Any]) -> None:
        moved = [float((tensor - start[name]).abs().max()) for name, tensor in run.guide.state_dict().items()]
        met.append(0 < max(moved) < 0.01)  # Adam's step is at most the learning rate

    Run.fit(model, guide=guide, data=x, epochs=1, batch_size=100, num_samples=5, quiet=True, on_epoch=look)
    assert met == [True]


@pytest.mark.parametrize(
    ("make", "sizes", "labelled"),
    [
        (lambda x: x.flatten(1).double(), (160, 20, 20), False),
        (lambda x: (x, torch.arange(200) % 3), (160, 20, 20), True),
        (lambda x: TensorDataset(x, torch.arange(200) % 3), (160, 20, 20), True),
        (lambda x: {"train": x[:100], "test": x[100:]}, (90, 10, 100), False),
        (
            lambda x: {"train": (x[:90], [0] * 90), "validation": (x[:9], [1] * 9), "test": (x, [2] * 200)},
            (90, 9, 200),
            True,
        ),
        (lambda x: {"train": x[:50].numpy(), "validation": x[:9].numpy(), "test": x.numpy()}, (50, 9, 200), False),
    ],
)
def test_data_in_python(elsewhere: Path, x: Tensor, make: Any, sizes: tuple[int, ...], labelled: bool) -> None:
    run = Run.fit("mixture", data=make(x), num_components=3, epochs=1, num_samples=5, quiet=True)
    data = run.data
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert (data.train.labels is not None) == labelled
    if sizes[2] == 200:
        assert torch.equal(data.test.images.float(), x.flatten(1))


def test_dtypes_are_no_other_images(elsewhere: Path) -> None:
    """Grey levels of bytes, and of floats between 0 and 1."""
    levels = torch.randint(0, 256, (60, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    levels[0, 0] = 255
    options: dict[str, Any] = {"num_components": 2, "epochs": 1, "num_samples": 5, "binarization": "threshold"}
    ours = Run.fit("mixture", data=levels, quiet=True, **options)
    theirs = Run.fit("mixture", data=levels.numpy() / 255, quiet=True, **options)
    assert torch.equal(ours.data.train.images, theirs.data.train.images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epoch": 3}, "epoch: unknown option of fit; did you mean 'epochs'"),
        ({"num_samples": 0}, "num_samples 0: must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate -1.0: must be above 0"),
        ({"data": "nosuch"}, "data nosuch: neither a data set"),
        ({"data": {"train": 1}}, r"data \[train\]: is of type int, not images"),
        ({"data": torch.randn(10, 4)}, r"data array \[train\]: pixels lie in"),
        ({"guide": nn.Linear}, r"guide=.*needs a method 'guide\(self, x, ...\)'"),
        ({"guide": "nosuch"}, "unknown guide 'nosuch'"),
        ({"guide_options": {"width": 3}}, "guide.width: Normal has no such option"),
        ({"out": "there"}, r"out there: exists already; name a new directory, or continue it with Run.open\('there'\)"),
    ],
)
def test_errors_speak_of_arguments(elsewhere: Path, options: dict[str, Any], words: str) -> None:
    Path("there").mkdir()
    with pytest.raises(BadInput, match=words) as error:
        Run.fit("vae", **{"data": "digits", **options})
    assert "--" not in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in Path().iterdir()) == ["there"]
    with pytest.raises(BadInput, match="name a model: belief-net"):
        Run.fit()


# How good it is ------------------------------------------------------------------------------------------------


@pytest.mark.painted
def test_evaluate_takes_the_place_of_the_evaluation(elsewhere: Path, x: Tensor) -> None:
    """With its pictures and the page. Options are fields by name, or a whole object."""
    run = Run.fit("vae", data=x, out="run", **FEW)
    first = run.evaluation
    assert first is not None and first.options["num_samples"] == 20 and str(first) in str(run.evaluation)
    picture = (run.path / "figures" / "gap_histogram.png").read_bytes()
    found = run.evaluate(num_samples=50, num_images=10, seed=1, quiet=True)
    assert run.evaluation is not None and run.evaluation.summary == json.loads(json.dumps(found.summary))
    assert found["log_px_importance"].settings["num_samples"] == 50 and found.options["num_images"] == 10
    assert (run.path / "figures" / "gap_histogram.png").read_bytes() != picture
    assert "10 test images of array" in (run.path / "report.html").read_text(encoding="utf-8")
    same = run.evaluate(EvaluationOptions(num_samples=50, num_images=10, seed=1), quiet=True)
    assert same.summary | {"seconds": 0} == found.summary | {"seconds": 0}
    with pytest.raises(BadInput, match="num_sample: unknown option; did you mean 'num_samples'"):
        run.evaluate(num_sample=3)


def test_an_evaluation_is_of_the_weights_that_were_loaded(elsewhere: Path, x: Tensor) -> None:
    """And says so: others are not named in it."""
    path = Run.fit("vae", data=x, out="run", **FEW).path
    best = Run.open(path, data=x, checkpoint="best")
    assert best.evaluation is None
    with pytest.raises(BadInput, match=r"run: has no evaluation of the weights of its best epoch; call evaluate\(\)"):
        Comparison(best)
    assert best.evaluate(num_images=5, quiet=True).summary["checkpoint"] == "best"
    assert best.evaluation is not None and len(Comparison(best).rows) == 1
    with pytest.raises(BadInput, match="opened with its best weights"):
        best.evaluate(checkpoint="last")
    with pytest.raises(BadInput, match="opened with its last weights"):
        Run.open(path, data=x).split_gap(checkpoint="best")


def test_proposals_are_opened_with_what_the_run_was_given(elsewhere: Path, x: Tensor) -> None:
    """A run of the user's own images shares them with the other."""
    run = Run.fit("vae", data=x, out="run", **FEW)
    other = Run.fit(data=x, init_from=run, guide="student-t", out="other", epochs=1, num_samples=20, quiet=True)
    found = run.evaluate(num_samples=40, num_images=5, proposals=(other.path,), quiet=True)
    assert found["log_px_mixed"].settings["proposal"]["guides"] == ["own", "other"]


def test_the_gap_is_split(elsewhere: Path, x: Tensor) -> None:
    run = Run.fit("vae", data=x, out="run", **FEW)
    found = run.split_gap(num_images=4, num_samples=30, quiet=True)
    assert found.summary["search"] == asdict(gap_split.Search())
    assert found.summary["contexts"]["num_images"] == 4 and found.copies is None and len(found.contexts.elbo) == 4
    assert found.summary["options"]["estimator"] == "importance" and found.summary["options"]["gaps"]
    assert run.directory.read_json("gaps.json") == json.loads(json.dumps(found.summary))
    assert "amortization gap" in str(found) and "amortization gap" in found._repr_html_()


# Training for longer, and ending it ----------------------------------------------------------------------------


# What it holds -------------------------------------------------------------------------------------------------


def test_starting_from_a_run(elsewhere: Path, x: Tensor) -> None:
    first = Run.fit("vae", data=x, **FEW)
    second = Run.fit(init_from=first, guide=Laplace, data=x, fixed_model=True, epochs=1, num_samples=5, quiet=True)
    assert second.config.init_from == str(first.path) and second.config.model == "vae"
    ours, theirs = weights(first), weights(second)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if name.startswith("last.model"))


def test_samples(elsewhere: Path, x: Tensor) -> None:
    run = Run.fit("vae", data=x, **FEW)
    assert run.sample(num_images=3).shape == (3, 4, 5)
    assert torch.equal(run.sample(seed=4), run.sample(seed=4)) and not torch.equal(run.sample(), run.sample(seed=4))
    with pytest.raises(BadInput, match="num_image: unknown option; did you mean 'num_images'"):
        run.sample(num_image=3)


def test_new_images(elsewhere: Path, x: Tensor) -> None:
    """As test images: their log p(x) is that of an evaluation, exact where it can be had; nothing is written."""
    run = Run.fit("mixture", data=x, num_components=3, epochs=2, num_samples=20, quiet=True)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    new = x[:7].flip(1)
    estimate = run.log_px(new)
    z = torch.arange(3)
    joint = run.model.likelihood(z.unsqueeze(1)).log_prob(new.flatten(1)) + run.model.prior().log_prob(z)[:, None]
    torch.testing.assert_close(estimate.log_px, joint.logsumexp(0).double().detach(), rtol=1e-5, atol=1e-5)
    assert estimate.estimator == "exact" and not estimate.at_least
    evaluation = run.evaluate(data=new.numpy(), num_samples=30)
    with pytest.raises(BadInput, match="data= is evaluated in place of a split"):
        run.evaluate(data=new, split="validation")
    assert evaluation.summary["num_images"] == 7 and evaluation.summary["data"] == "array"
    # The share of each component among many samples is its responsibility: 5 standard errors, 2e-5 of false alarms.
    samples = run.latents(new, num_samples=4000)["z"]
    assert samples.shape == (4000, 7, 1)
    share = torch.stack([(samples[..., 0] == k).double().mean(0) for k in range(3)])
    p = joint.softmax(0).double().detach()
    assert bool(((share - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt() + 1e-9).all())
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    with pytest.raises(BadInput, match="images of 12 pixels, but the run was fitted to images of 20"):
        run.log_px(torch.zeros(3, 12))


def test_latents_of_a_guide(elsewhere: Path, x: Tensor) -> None:
    run = Run.fit("vae", data=x, **FEW | {"latent_dim": 2})
    samples = run.latents(x[:5], num_samples=3000)["z"]
    posterior = run.guide.posterior(run.guide.encode(x[:5].flatten(1)))
    error = posterior.stddev / 3000**0.5
    assert samples.shape == (3000, 5, 2) and bool(((samples.mean(0) - posterior.mean).abs() < 5 * error).all())
    assert torch.equal(samples, run.latents(x[:5], num_samples=3000)["z"])


def test_how_it_shows_itself(elsewhere: Path, x: Tensor) -> None:
    """As text, and in a notebook as HTML: the evaluation, the pictures with their captions, escaped."""
    run = Run.fit("vae", guide=Laplace, data=x, **FEW)
    assert repr(run).startswith("Run('runs/vae-laplace-array-1'): vae, guide ") and "log p(x)" in repr(run)
    assert "<table" in run._repr_html_() and "ELBO" in run._repr_html_()
    figures = run.figures
    assert {"learning_curves", "samples", "reconstructions", "gap_histogram"} <= set(figures)
    assert "after each epoch" in repr(figures["learning_curves"])
    assert figures._repr_html_().count("<img") == len(figures) == figures._repr_html_().count("<figcaption>")
    (run.path / "figures" / "<script>.png").write_bytes((run.path / "figures" / "samples.png").read_bytes())
    assert "<script>" not in run.figures._repr_html_()
    run.directory.write_json("evaluation.json", run.evaluation.summary | {"guide": "<script>"})  # type: ignore[union-attr]
    assert "<script>" not in run._repr_html_()


def test_an_objective_of_ones_own(elsewhere: Path, x: Tensor) -> None:
    """A class with an option, and a module whose weights are trained, saved, and needed again to train on."""

    class Halved:
        def __init__(self, *, num_particles: int = 1, weight: float = 1.0):
            self.num_particles, self.weight = num_particles, weight

        def surrogate(self, terms: Any) -> Tensor:
            return self.weight * terms.log_weight.mean(0)

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.randn(()))

        def loss(self, pair: Any, x: Tensor) -> Tensor:
            weight = pair.terms(x).log_weight.mean(0)
            return -weight.sum() + (weight.detach() - self.level).square().sum()

    run = Run.fit("vae", objective=Halved, objective_options={"weight": 0.5}, data=x, **FEW)
    assert run.config.training.objective == "class:Halved" and run.config.objective_options == {"weight": 0.5}
    learned = Run.fit("vae", objective=Learned, data=x, out="learned", **FEW)
    assert "last.objective.level" in weights(learned)
    assert Run.open("learned", data=x).evaluate(num_samples=10, quiet=True).elbo.mean < 0  # it needs no objective
    with pytest.raises(BadInput, match="was trained with the objective class:Learned; it was class Learned"):
        Run.open("learned", data=x).resume(3, quiet=True)
    longer = Run.open("learned", data=x, objective=Learned).resume(3, quiet=True)
    whole = Run.fit("vae", objective=Learned, data=x, **FEW | {"epochs": 3})
    assert same_runs(longer, whole)
    instance = Learned()
    Run.fit("vae", objective=instance, data=x, **FEW)
    assert not torch.equal(instance.level, Learned().level) and instance.level.grad is None


def test_the_directory_of_a_run(finished: Path) -> None:
    assert sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()) == [
        ".lock",
        "checkpoint.safetensors",
        "config.json",
        "evaluation.json",
        "evaluation.nc",
        "explorer.json",
        "figures/aggregate_posterior.png",
        "figures/gap_histogram.png",
        "figures/how_far.png",
        "figures/interpolations.png",
        "figures/latent_space.png",
        "figures/learning_curves.png",
        "figures/reconstructions.png",
        "figures/samples.png",
        "figures/through_training.png",
        "metrics.jsonl",
        "report.html",
        "samples.npz",
    ]
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert config["model_options"]["latent_dim"] == 20 and config["guide_options"]["input_dropout"] == 0.0
    assert config["training"]["seed"] == 0 and config["versions"]["torch"] == version("torch")


def test_new_images_have_the_white_of_the_run(elsewhere: Path, x: Tensor) -> None:
    """However dark they are, and whichever others come with them."""
    grey = (x * torch.linspace(90, 255, len(x))[:, None, None]).round().byte()
    run = Run.fit("vae", data=grey, binarization="none", likelihood="normal", **FEW)
    dark = grey[:4]
    assert dark.max() < 128
    expected = run.log_px(dark.float() / 255, num_samples=5).log_px
    assert torch.equal(run.log_px(dark, num_samples=5).log_px, expected)
    assert torch.equal(run.log_px(dark.double(), num_samples=5).log_px, expected)
    assert torch.allclose(run.log_px(dark.numpy().astype(int), num_samples=5).log_px, expected)
    with pytest.raises(BadInput, match="pixels up to 300, but white is 255 in the run"):
        run.log_px(dark.long().clamp(max=0) + 300)


def test_what_a_session_shows_is_short(elsewhere: Path, x: Tensor) -> None:
    run = Run.fit("vae", guide=Laplace, data=x, out="run", **FEW)
    assert repr(run.data) == "Data(array: 160 / 20 / 20 images of 4 × 5 pixels, dynamic)"
    assert repr(run.pair) == "Pair(VAE, Laplace: latent z [1]; observed x)"
    assert repr(run).startswith("Run('run'): vae, guide fits:Laplace, on array\nELBO ")
    with pytest.raises(
        BadInput, match=r"images of 5 pixels, but the run was fitted to images of 20; give a single image as x\[None\]"
    ):
        run.log_px(x[0])


# Bad input -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    x = torch.bernoulli(torch.full((100, 4, 5), 0.3), generator=torch.Generator().manual_seed(0))
    return Run.fit("vae", data=x, out=tmp_path_factory.mktemp("runs") / "run", **FEW)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda run, x: run.evaluate("test"),
            "options 'test': must be EvaluationOptions(…); single options are given by",
        ),
        (lambda run, x: run.evaluate(options=0), "options 0: must be EvaluationOptions(…)"),
        (lambda run, x: run.sample(5), "options 5: must be SampleOptions(…)"),
        (lambda run, x: run.evaluate(EvaluationOptions(num_samples=2.5)), "num_samples 2.5: must be a whole number"),
        (
            lambda run, x: run.evaluate(annealed=3),
            "annealed 3: must be a dictionary of options by name, or Annealing(…)",
        ),
        (
            lambda run, x: run.evaluate(estimator="annealed", annealed={"num_temperature": 20}),
            "annealed.num_temperature: unknown option; did you mean 'num_temperatures'?",
        ),
        (lambda run, x: run.evaluate(estimator=3), "estimator 3: must be a function, or have a method 'estimate("),
        (lambda run, x: run.evaluate(estimator=[None]), "estimator None: must be a function, or have a method"),
        (lambda run, x: run.evaluate(estimator="foo"), "estimator foo: choose from auto, exact, quadrature"),
        (lambda run, x: run.evaluate(estimator="foo.py:a"), "estimator 'foo.py': no such file"),
        (lambda run, x: run.evaluate(estimator=["prior", "exact"]), "estimator prior exact: one name of the package"),
        (lambda run, x: run.latents(x, num_samples="3"), "num_samples '3': must be a whole number"),
        (lambda run, x: run.latents(x, num_samples=2.5), "num_samples 2.5: must be a whole number"),
        (lambda run, x: run.latents(x, seed=None), "seed None: must be a whole number"),
        (lambda run, x: run.latents(x, seed=-1), "seed -1: must be at least 0 and below 2^63"),
        (lambda run, x: run.log_px(x, num_samples="3"), "num_samples '3': must be a whole number"),
        (lambda run, x: run.log_px(x, seed=-1), "seed -1: must be at least 0 and below 2^63"),
        (lambda run, x: run.sample(seed=None), "seed None: must be a whole number"),
        (lambda run, x: run.fill(num_samples=2.5), "num_samples 2.5: must be a whole number"),
        (lambda run, x: run.splice(seed=-1), "seed -1: must be at least 0 and below 2^63"),
        (lambda run, x: run.log_px(None), "x None: give images [N, …]"),
        (lambda run, x: run.latents(None), "x None: give images [N, …]"),
        (lambda run, x: Run.open(3), "path 3: must be a path"),
        (lambda run, x: Run.open(None), "path None: must be a path"),
        (lambda run, x: ppl_gen.load(3), "path 3: must be a path"),
        (lambda run, x: Run.open(run.path, device="foo"), "device foo: choose from auto, cpu, cuda"),
        (lambda run, x: Run.open(run.path, device=None), "device None: choose from auto, cpu, cuda"),
        (lambda run, x: Run.open(run.path, checkpoint="first"), "checkpoint first: choose from last, best"),
    ],
)
def test_bad_arguments_of_uses(small_run: Run, x: Tensor, use: Any, message: str) -> None:
    """One sentence of arguments, and nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in small_run.path.rglob("*")}
    with pytest.raises(BadInput) as error:
        use(small_run, x[:3])
    assert str(error.value).startswith(message)
    assert {path: path.stat().st_mtime_ns for path in small_run.path.rglob("*")} == before


def test_arguments_in_other_forms(small_run: Run, x: Tensor) -> None:
    """A run for its path, a single function for a list, a dictionary for a group of options, numbers of NumPy."""
    assert Run.open(small_run).path == small_run.path
    assert small_run.latents(x[:3], num_samples=np.int64(2), seed=np.int32(1))["z"].shape == (2, 3, 1)

    def mine(model: Any, guide: Any, x: Tensor) -> ppl_gen.Estimate:
        zero = torch.zeros(len(x), dtype=torch.float64)
        return ppl_gen.Estimate(estimator="mine", log_px=zero, log_px_mc_var=zero, log_px_bias=zero, num_samples=1)

    assert "mine" in small_run.evaluate(data=x[:3], estimator=mine, quiet=True).estimates
    settings = {"num_temperatures": np.int64(20), "num_chains": 4}
    found = small_run.evaluate(data=x[:3], estimator="annealed", annealed=settings, sandwich=0, quiet=True)
    assert found.log_px.settings["num_temperatures"] == 20 and found.log_px.settings["num_chains"] == 4
    whole = small_run.evaluate(EvaluationOptions(num_samples=np.int64(5)), quiet=True)  # type: ignore[arg-type]
    assert small_run.evaluation is not None and small_run.evaluation.summary == json.loads(json.dumps(whole.summary))


class Labelled(VAE):
    """A model that does without labels, otherwise."""

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> None:
        super().model(x, n=n)


def test_a_run_with_labels_is_not_evaluated_without(elsewhere: Path, x: Tensor) -> None:
    y = torch.arange(len(x)) % 3
    run = Run.fit(Labelled, guide=LabelledLaplace, data=(x, y), **FEW)
    assert len(run.log_px((x[:4], y[:4])).log_px) == 4
    for use in (run.log_px, run.latents, lambda x: run.evaluate(data=x)):
        with pytest.raises(BadInput, match=r"was fitted to images with labels; give both: \(x, y\)"):
            use(x[:4])


class LabelledLaplace(Laplace):
    """The guide beside it."""

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        super().guide(x if y is None else x * (1 + y[:, None]))


def test_where_gradients_are_off(elsewhere: Path, x: Tensor, small_run: Run) -> None:
    """A fit means to train. What cannot be is told, and a run that was opened there is like any other."""
    with torch.no_grad():
        run = Run.fit("vae", data=x, out="off", **FEW)
        run.resume(3, quiet=True)
    assert same_runs(run, Run.fit("vae", data=x, out="on", **FEW | {"epochs": 3}))
    settings: dict[str, Any] = {"estimator": "annealed", "annealed": {"num_temperatures": 3}, "quiet": True}
    with torch.inference_mode():
        for use in (
            lambda: Run.fit("vae", data=x, **FEW),
            lambda: run.resume(4, quiet=True),
            lambda: run.evaluate(data=x[:2], sandwich=0, **settings),
            lambda: run.split_gap(num_images=2, num_samples=5, quiet=True),
        ):
            with pytest.raises(BadInput, match=r"needs gradients, but torch.inference_mode\(\) forbids them"):
                use()
        opened = Run.open("on", data=x)
        assert torch.equal(opened.log_px(x[:2]).log_px, run.log_px(x[:2]).log_px)
    assert len(opened.split_gap(num_images=2, num_samples=5, quiet=True).contexts.elbo) == 2
    assert sorted(path.name for path in elsewhere.iterdir()) == ["off", "on"]


def test_a_run_that_diverges_fails(elsewhere: Path, x: Tensor) -> None:
    """With a sentence of arguments, and its last checkpoint."""
    with pytest.raises(ppl_gen.Failed, match="A lower learning_rate or clip_grad_norm may help") as error:
        Run.fit("vae", data=x, out="run", **FEW | {"learning_rate": 1e20})
    assert "kept in run" in str(error.value) and Run.open("run", data=x).model is not None


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"data": "digits"}, "python -m ppl_gen.fit --resume run"),
        ({"data": "digits", "guide": Laplace}, "python -m ppl_gen.fit --resume run --guide fits:Laplace"),
        ({}, "Run.open('run', data=…).resume()"),
        ({"guide": Laplace}, "Run.open('run', guide='fits:Laplace', data=…).resume()"),
        ({"guide": Laplace(20, 1)}, "Run.open('run', guide=…, data=…).resume()"),
        ({"objective": type("Own", (Elbo,), {})}, "Run.open('run', objective=…, data=…).resume()"),
    ],
)
def test_ctrl_c_says_a_call_that_works(elsewhere: Path, x: Tensor, options: dict[str, Any], call: str) -> None:
    def interrupt(run: Run, metrics: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        Run.fit("vae", **{"data": x, "out": "run", "on_epoch": interrupt, **FEW, **options})
    assert str(error.value) == f"continue with: {call}"


def test_float64_is_told(elsewhere: Path, x: Tensor, small_run: Run) -> None:
    """By its cause, before any work."""
    torch.set_default_dtype(torch.float64)
    try:
        for use in (lambda: Run.fit("vae", data=x, **FEW), lambda: Run.open(small_run).model):
            with pytest.raises(BadInput, match=r"default dtype is torch.float64, but runs need float32; call torch"):
                use()
    finally:
        torch.set_default_dtype(torch.float32)
    assert list(elsewhere.iterdir()) == []


def test_a_run_opened_without_its_images_has_no_warning(
    elsewhere: Path, x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.fit("vae", guide=Laplace, data=x, out="run", **FEW)
    capsys.readouterr()
    with pytest.raises(BadInput, match="pass it again"):
        _ = Run.open(run.path, guide=Laplace).data
    assert capsys.readouterr() == ("", "")
