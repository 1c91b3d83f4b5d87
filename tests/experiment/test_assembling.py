"""A pair whose first weights are another run's."""

import json
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from fits import FEW, PLAIN, Laplace, weights
from own_classes import GUIDE
from torch import Tensor, nn

import ppl_gen
from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.models.vae import VAE
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


def test_starting_from_another_run(elsewhere: Path, finished: Path, call: Call) -> None:
    """Epoch 0 is where the other run ended, with the same guide; with another guide only the model is taken."""
    import shutil

    shutil.copytree(finished, "first")
    last = json.loads(Path("first/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    arguments = ("--init-from", "first", *PLAIN, "--out", "second")
    status, out, _ = call(fit.command, "vae", *arguments, "--objective", "elbo-analytic-kl")
    assert status == 0 and "starts from first: its model, and 4 of the 4 tensors of the guide" in out
    lines = [json.loads(line) for line in Path("second/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["validation"] == last["validation"] and lines[1]["validation"] != last["validation"]

    shutil.rmtree("first")  # a run that has started does not need it
    Path("second/evaluation.json").unlink()
    status, _, err = call(fit.command, "--resume", "second")
    assert status == 0 and "training was already finished" in err
    Path("second/checkpoint.safetensors").unlink()
    status, _, err = call(fit.command, "--resume", "second")
    assert status == 2 and "first: no such run directory" in err

    Path("my_guide.py").write_text(GUIDE)
    config = Config(
        model_options={"hidden_dims": (16,)},
        guide="my_guide.py:MyGuide",
        data=DataOptions(data="digits", train_size=200),
        training=TrainingOptions(epochs=1, learning_rate=1e-30),
        num_samples=1,
        init_from=str(finished),
    )
    run = Run.start(config, out="third", quiet=True).directory
    ours, theirs = (ppl_gen.load(path, guide) for path, guide in ((run.path, config.guide), (finished, None)))
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(tensor, theirs.model.state_dict()[name])


def test_refitting_the_guide(elsewhere: Path, finished: Path, call: Call) -> None:
    """The model, with its data and prior, is the other run's, and stays as it was to the last bit; the guide moves."""
    import shutil

    shutil.copytree(finished, "first")
    arguments = ("--init-from", "first", "--refit-guide", "multivariate-normal", "--epochs", "1", "--num-samples", "20")
    status, out, err = call(fit.command, *arguments, "--out", "second")
    assert status == 0, err
    assert "starts from first: its model, and 2 of the 4 tensors of the guide" in out
    before, after = ppl_gen.load("first"), ppl_gen.load("second")
    assert after.config["guide"] == "multivariate-normal" and after.config["data"] == before.config["data"]
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name])
    hidden = "encoder.0.weight"
    assert not torch.equal(before.guide.state_dict()[hidden], after.guide.state_dict()[hidden])
    lines = [json.loads(line) for line in Path("second/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["validation"]["elbo"] > lines[0]["validation"]["elbo"]
    Path("second/evaluation.json").unlink()
    status, _, err = call(fit.command, "--resume", "second")
    assert status == 0, err

    for wrong, words in (
        (("vae", "--refit-guide", "normal"), "name it with --init-from"),
        (("--init-from", "first", "--refit-guide", "normal", "--guide", "flow"), "leave out --guide"),
        (("--init-from", "first", "--refit-guide", "norml"), "did you mean 'normal'"),
        (("--init-from", "first", "--refit-guide", "normal", "--prior", "flow"), "has another --prior"),
        (("--init_from", "first", "--refit_guide", "normal", "--guide", "flow"), "leave out --guide"),
    ):
        status, _, err = call(fit.command, *wrong, "--out", "third")
        assert status == 2 and words in err, err
    assert not Path("third").exists()


class Shifted(nn.Module):
    """A prior of one's own."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.loc = nn.Parameter(torch.full((latent_dim,), 3.0))

    def prior(self) -> dist.Distribution:
        return dist.Normal(self.loc, 0.5).to_event(1)


def test_an_instance_is_given_back_as_it_was(elsewhere: Path, x: Tensor) -> None:
    """Its weights are trained; another prior, and weights that stay fixed, are the run's own affair."""
    model = VAE((4, 5), latent_dim=1, hidden_dims=(8,))
    few = {name: FEW[name] for name in ("epochs", "num_samples", "quiet")} | {"data": x}
    first = Run.fit(model, guide=Laplace(20, 1), prior=Shifted, out="first", **few)
    assert first.model.prior().base_dist.loc.item() != 0  # type: ignore[operator, union-attr]
    with pytest.raises(BadInput, match="needs the run of the model"):
        Run.fit(model, guide=Laplace(20, 1), fixed_model=True, **few)
    assert all(parameter.requires_grad for parameter in model.parameters())
    second = Run.fit(model, guide=Laplace(20, 1), out="second", **few)
    assert second.config.prior is None and second.evaluation is not None
    assert model.prior().base_dist.loc.item() == 0 and "swapped_prior" not in dict(model.named_modules())
    third = Run.fit(model, guide=Laplace(20, 1), init_from="second", fixed_model=True, out="third", **few)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert third.resume(3, quiet=True).config.fixed_model
    assert all(torch.equal(weights(third)[name], tensor) for name, tensor in weights(second).items() if "model" in name)


def test_other_parameters_than_before_are_refused(elsewhere: Path, x: Tensor) -> None:
    """The optimizer's state goes by the order of the trained parameters."""
    few = {name: FEW[name] for name in ("epochs", "num_samples", "quiet")}
    model, guide = VAE((4, 5), latent_dim=1, hidden_dims=(8,)), Laplace(20, 1)
    run = Run.fit(model, guide=guide, data=x, out="run", **few)
    model.decoder[0].weight.requires_grad_(False)
    with pytest.raises(BadInput, match=r"it was trained with other parameters, such as model.decoder.0.weight"):
        run.resume(4, quiet=True)
