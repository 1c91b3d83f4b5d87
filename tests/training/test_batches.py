"""One image is too few for batch normalization: no step has one, whatever the number of images."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fits import interrupt_after
from torch import Tensor, nn

from ppl_gen import fit
from ppl_gen.core import components
from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.data.orders import Order
from ppl_gen.experiment.config import Config, training_defaults
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.models.gan import GAN
from ppl_gen.run import Run
from ppl_gen.training.batches import batches, least_images, num_batches, with_labelled

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(("size", "share"), [(10, 0.2), (7, 0.5), (3, 0.01), (2, 0.99), (64, 0.1)])
def test_labelled_images_in_every_batch(size: int, share: float) -> None:
    """All images are there once in their order, and each batch ends with its share of labelled ones, equally often."""
    order, labelled = torch.randperm(53), torch.tensor([50, 3, 7, 20])
    found = with_labelled(order, labelled, share, size)
    count = min(max(1, round(share * size)), size - 1)
    others, repeated = [], []
    parts = list(batches(found, size, 1))
    for part in parts:
        others.append(part[:-count])
        repeated.append(part[-count:])
        assert len(part) == size or part is parts[-1] or len(others) == -(-53 // (size - count))
    assert torch.equal(torch.cat(others), order)
    times = torch.bincount(torch.cat(repeated), minlength=53)[labelled]
    assert int(times.sum()) == len(torch.cat(repeated)) and int(times.max() - times.min()) <= 1


OWN = '''
import pyro
import pyro.distributions as dist
from torch import nn


class Normalized(nn.Module):
    """A guide with torch's batch normalization."""

    def __init__(self, data_dim, latent_dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(data_dim, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2 * latent_dim))

    def guide(self, x):
        if self.training:
            SEEN.append(len(x))
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class ByHand(Normalized):
    """With one of its own, which is NaN on one image."""

    def __init__(self, data_dim, latent_dim):
        super().__init__(data_dim, latent_dim)
        self.net = nn.Linear(data_dim, 2 * latent_dim)

    def guide(self, x):
        super().guide((x - x.mean(0)) / (x.std(0) + 1) if self.training else x)


class Plain(Normalized):
    def __init__(self, data_dim, latent_dim):
        super().__init__(data_dim, latent_dim)
        self.net = nn.Linear(data_dim, 2 * latent_dim)


SEEN = []
'''


@pytest.mark.parametrize("size", range(2, 9))
def test_what_is_left_over(size: int) -> None:
    """Batches cut the order as `split` does, but for one image that is left over."""
    for count in range(size, 30):
        order = torch.randperm(count)
        for least in (1, 2):
            parts = list(batches(order, size, least))
            assert len(parts) == num_batches(count, size, least)
            assert torch.equal(torch.cat(parts), order)
            assert min(map(len, parts)) >= least
            if least == 1 or count % size != 1:
                assert [len(part) for part in parts] == [len(part) for part in order.split(size)]


@pytest.mark.parametrize("done", [0, 1, 5, 699, 700])
def test_batches_of_a_computed_order(done: int) -> None:
    """They are those of its numbers, from any batch on."""
    order = Order(7_001, seed=2)
    found, whole = list(batches(order, 10, 2, done=done)), list(batches(order[:], 10, 2))
    assert len(whole) == 700 and len(found) == 700 - done
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, whole[done:], strict=True))


QUICK = ("--data", "digits", "--epochs", "2", "--latent-dim", "1", "--hidden-dims", "8", "--num-samples", "20")


@pytest.mark.parametrize(
    "guide, sizes",
    [("Normalized", [20, 21]), ("ByHand", [20, 21]), ("Plain", [20, 20, 1])],
)
def test_own_guide(elsewhere: Path, call: Call, guide: str, sizes: list[int]) -> None:
    """41 images in batches of 20; what needs no second image has the batches that it had."""
    Path("own.py").write_text(OWN)
    options = ("vae", "--guide", f"own.py:{guide}", *QUICK, "--train-size", "41", "--batch-size", "20")
    seen = components.find("guide", f"own.py:{guide}").guide.__globals__["SEEN"]
    status, _, err = call(fit.command, *options, "--out", "run")
    assert status == 0, err
    assert seen[-2 * len(sizes) :] == 2 * sizes
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, len(sizes), 2 * len(sizes)]
    status, _, err = call(fit.command, *options[:-1], "1", "--out", "single")
    if guide == "Plain":
        assert status == 0, err
    else:
        assert status == 2 and "a --batch-size and a --train-size of at least 2" in err and not Path("single").exists()


def test_gan(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fit gan --train-size 129`: the second batch would be one image. Batches of one are refused."""
    monkeypatch.setattr(GAN, "evaluation_defaults", {"num_images": 5})
    status, _, err = call(fit.command, "gan", *QUICK, "--train-size", "129", "--out", "run")
    assert status == 0, err
    assert json.loads(Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"] == 2
    for more in ((), ("--dry-run",)):
        status, _, err = call(fit.command, "gan", *QUICK, "--train-size", "9", "--batch-size", "1", "--out", "x", *more)
        assert status == 2 and "batch normalization in GAN" in err and err.count("error:") == 1
    assert not Path("x").exists()


def test_resumed_in_mid_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: 65 images in batches of 16, and a last one of 17; interrupted before it, and after an epoch."""
    monkeypatch.setattr(GAN, "evaluation_defaults", {"num_images": 5})
    training = replace(TrainingOptions(**training_defaults(GAN)), epochs=3, batch_size=16)
    config = Config(
        "gan",
        {"latent_dim": 2, "hidden_dims": (8,)},
        "prior",
        data=DataOptions("digits", "dequantized", train_size=65),
        training=training,
        num_samples=10,
    )
    whole = Run.start(config, out=tmp_path / "whole", quiet=True).directory.load_checkpoint()
    assert whole is not None and whole[1]["step"] == 12
    for steps in (3, 6):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(steps, patch)
            Run.start(config, out=tmp_path / f"cut{steps}", quiet=True)
        cut = Run.open(tmp_path / f"cut{steps}").resume(quiet=True).directory.load_checkpoint()
        assert cut is not None and whole[0].keys() == cut[0].keys()
        assert all(torch.equal(tensor, cut[0][name]) for name, tensor in whole[0].items())


def test_trying_leaves_no_trace() -> None:
    """Of weights, moments, modes and noise; and an error that two images make as well is left to training."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout())
    net[2].eval()
    before, noise = {name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()

    def loss(x: Tensor) -> Tensor:
        return net(x).square().sum()

    assert least_images(loss, nn.Module(), net, 8, lambda: (torch.randn(8, 3),)) == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(noise, torch.get_rng_state()) and net[1].training and not net[2].training
    assert least_images(lambda x: net(x[0]), nn.Module(), net, 8, lambda: (torch.randn(8, 3),)) == 1
    with pytest.raises(BadInput, match="at least 2"):
        least_images(loss, nn.Module(), net, 1, lambda: (torch.randn(1, 3),))


@pytest.mark.slow
def test_two_processes(elsewhere: Path) -> None:
    """Batches of three, and four at the end: shares of one image go to the process that has two."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    options = (*QUICK, "--train-size", "31", "--batch-size", "3", "--out", "two")
    done = subprocess.run([*torchrun, "ppl_gen.fit", "gan", *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("two/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"] == 20
