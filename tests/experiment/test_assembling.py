"""A pair whose first weights are another run's."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from fits import PLAIN
from own_classes import GUIDE

import ppl_gen
from ppl_gen import fit
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
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
    assert status == 0 and "training was finished before" in err
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
