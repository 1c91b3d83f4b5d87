"""Models of images with labels: conditional, semi-supervised, and clusters that nobody has labelled."""

import html
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from commands import read, refused
from fits import FEW, SHORT, interrupt_after, same_runs
from matplotlib.text import Text
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

import ppl_gen
from ppl_gen import compare, evaluate, fit, responsibilities
from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data, Split, hide_labels
from ppl_gen.evaluation.entries import quantity
from ppl_gen.figures.responsibilities import components_by_label
from ppl_gen.guides.conditional import Conditional
from ppl_gen.guides.normal import Normal
from ppl_gen.guides.semi_supervised import SemiSupervised
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.elbos import TraceEnumSampled
from ppl_gen.inference.pair import Pair
from ppl_gen.models.conditional_vae import ConditionalVAE
from ppl_gen.models.gaussian_mixture_vae import GaussianMixtureVAE
from ppl_gen.models.semi_supervised_vae import SemiSupervisedVAE
from ppl_gen.run import Run

UNKNOWN = torch.tensor([-1, 2, -1, 0, 1])


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 6, generator=torch.Generator().manual_seed(1)).bernoulli().double()


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _normal(z: Tensor) -> Tensor:
    return dist.Normal(0.0, 1.0).log_prob(z).sum(-1)


def test_a_conditional_pair(x: Tensor) -> None:
    model = ConditionalVAE(6, 3, latent_dim=2, hidden_dims=(4,))
    guide, y = Conditional(6, 2, "z", 3, model), torch.tensor([0, 2, 1, 1, 0])
    with torch.no_grad():
        terms = Pair.read(model, guide, x, y).terms(x, y, num_samples=4)
        z = terms.latents["z"]
        inputs = torch.cat([z, F.one_hot(y, 3).double().expand(4, 5, 3)], -1)
        likelihood = dist.Bernoulli(logits=model.decoder(inputs)).log_prob(x).sum(-1)
        expected = likelihood + _normal(z) - guide.posterior(x, y).log_prob(z)
    torch.testing.assert_close(terms.log_weight, expected, rtol=1e-10, atol=1e-10)
    assert model.model(n=4).shape == (4, 6)


def _semi_supervised() -> tuple[SemiSupervisedVAE, SemiSupervised]:
    model = SemiSupervisedVAE(6, 3, latent_dim=2, hidden_dims=(4,))
    return model, SemiSupervised(6, 2, "z", 3, model, labelled_share=0.6, alpha=0.3)


def test_a_semi_supervised_pair(x: Tensor) -> None:
    """Known labels leave one term of each sum: log p(x, y), and the bound L(x, y) of Kingma et al. (2014), equation 6.
    Unknown ones have equation 7. The classifier's loss is no part of either."""
    model, guide = _semi_supervised()
    pair = Pair.read(model, guide, x, UNKNOWN)
    assert pair.enumerated_in_guide == ("y",) and pair.left_out == ("classification",)
    with torch.no_grad():
        torch.manual_seed(1)
        terms = pair.terms(x, UNKNOWN, num_samples=4)
        torch.manual_seed(1)
        z = pair.by_value(4, Batch(x, (UNKNOWN,), {})).values["z"]
        joint, log_q = [], []
        for label in range(3):
            code = F.one_hot(torch.tensor(label), 3).double().expand(4, 5, 3)
            likelihood = dist.Bernoulli(logits=model.decoder(torch.cat([code, z[label]], -1))).log_prob(x).sum(-1)
            joint.append(likelihood + _normal(z[label]) - math.log(3))
            log_q.append(guide.posterior(x, torch.full((5,), label)).log_prob(z[label]))
        each = torch.stack(joint) - torch.stack(log_q)  # [labels, samples, images]
        classified = guide.classify(x).logits.log_softmax(-1).T[:, None]
    unlabelled = (classified.exp() * (each - classified)).sum(0)
    for image, label in enumerate(UNKNOWN.tolist()):
        weight = each[:, :, image].logsumexp(0) if label < 0 else each[label, :, image]
        evidence = unlabelled[:, image] if label < 0 else each[label, :, image]
        torch.testing.assert_close(terms.log_weight[:, image], weight, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(terms.evidence[:, image], evidence, rtol=1e-10, atol=1e-10)
    loss = -0.3 / 0.6 * torch.stack([classified[y, 0, i] if y >= 0 else torch.zeros(()) for i, y in enumerate(UNKNOWN)])
    assert terms.penalty is not None
    torch.testing.assert_close(terms.penalty, loss.expand(4, 5), rtol=1e-10, atol=1e-10)


def test_training_of_a_semi_supervised_pair_is_that_of_pyro(x: Tensor) -> None:
    """Loss and gradient of `TraceEnum_ELBO`, on images without labels. (With a label, Pyro multiplies 0 and -inf.)"""
    found = []
    for ours in (True, False):
        torch.manual_seed(2)
        model, guide = _semi_supervised()
        elbo: Any = TraceEnum_ELBO(max_plate_nesting=1)
        if ours:
            elbo = TraceEnumSampled(Pair.read(model, guide, x, UNKNOWN), 1)
        torch.manual_seed(3)
        y = torch.full_like(UNKNOWN, -1)
        loss = elbo.differentiable_loss(model.model, guide.guide, x, y)
        found.append([loss, *torch.autograd.grad(loss, [*model.parameters(), *guide.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_the_classifier_learns_from_labels_alone(x: Tensor) -> None:
    """The gradient of the loss for the classifier, on labelled images, is that of its cross-entropy."""
    model, guide = _semi_supervised()
    y = torch.tensor([0, 2, 1, 1, 0])
    loss = TraceEnumSampled(Pair.read(model, guide, x, y), 1).differentiable_loss(model.model, guide.guide, x, y)
    parameters = list(guide.classifier.parameters())
    ours = torch.autograd.grad(loss, parameters)
    cross_entropy = 0.3 / 0.6 * F.cross_entropy(guide.classifier(x), y, reduction="sum")
    for one, other in zip(ours, torch.autograd.grad(cross_entropy, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_clusters(x: Tensor) -> None:
    """The weights are those of the mixture that `prior()` states."""
    model = GaussianMixtureVAE(6, latent_dim=2, num_components=3, hidden_dims=(4,))
    guide = Normal((6,), 2, "z", model)
    with torch.no_grad():
        model.logits.copy_(torch.tensor([0.0, 1.0, -1.0]))
        pair = Pair.read(model, guide, x)
        terms = pair.terms(x, num_samples=4)
        z = terms.latents["z"]
        expected = model.prior().log_prob(z) + model.likelihood(z).log_prob(x)
        expected = expected - guide.posterior(guide.encode(x)).log_prob(z)
    assert pair.summed == ("y",)
    torch.testing.assert_close(terms.log_weight, expected, rtol=1e-10, atol=1e-10)


# Data ----------------------------------------------------------------------------------------------------------


def test_labels_are_hidden_class_by_class() -> None:
    labels = torch.arange(40) % 4
    split = Split(torch.zeros(40, 2), labels)
    kept = hide_labels(split, 12)
    assert kept.labels is not None and kept.given_labels is not None
    shown = kept.given_labels >= 0
    assert torch.equal(kept.given_labels[shown], labels[shown]) and torch.equal(kept.labels, labels)
    assert torch.bincount(kept.given_labels[shown]).tolist() == [3, 3, 3, 3]
    assert torch.equal(hide_labels(split, 12).given_labels, kept.given_labels)
    assert bool((hide_labels(split, 8).given_labels[~shown] == -1).all())  # type: ignore[index]
    for number, words in ((10, "must be a multiple of the 4 classes"), (44, "at most 10 images of each")):
        with pytest.raises(BadInput, match=words):
            hide_labels(split, number)
    with pytest.raises(BadInput, match="needs labels that are whole numbers"):
        hide_labels(Split(torch.zeros(3, 2)), 3)


# From fit to comparison ------------------------------------------------------------------------------------------


@pytest.fixture
def single() -> None:
    torch.set_default_dtype(torch.float32)


def test_what_is_evaluated_has_its_name(elsewhere: Path, call: Any, single: None) -> None:
    small = (*SHORT, "--latent-dim", "1", "--hidden-dims", "4")
    status, out, err = call(fit.command, "conditional-vae", *small, "--out", "given")
    assert status == 0 and "log p(x | y)" in out and "log p(x)" not in out, err
    few = ("semi-supervised-vae", *small, "--labelled", "20")
    status, out, err = call(fit.command, *few, "--out", "few")
    assert status == 0 and "log p(x) " in out and "'classification' of the guide" in out, err
    status, out, err = call(fit.command, "semi-supervised-vae", *small, "--out", "all")
    assert status == 0 and "log p(x, y)" in out, err
    assert read("all/evaluation.json")["quantity"] == "log p(x, y)"
    status, _, err = call(compare.command, "given", "all")
    assert status == 2 and "quantity is log p(x | y) in the first and log p(x, y) in the second" in err

    status, out, err = call(responsibilities.command, "few", "--num-images", "40", "--num-samples", "20")
    found = read("few/responsibilities.json")
    assert status == 0 and set(found["error"]) == {"p(y | x)", "q(y | x)"} and "by 20 importance samples" in out, err
    status, _, err = call(responsibilities.command, "all")
    assert status == 2 and "is given the labels of the test split" in err
    status, out, _ = call(evaluate.command, "few", "--num-samples", "20")
    assert status == 0 and "log p(x) " in out


def test_a_share_of_labelled_images(elsewhere: Path, call: Any, single: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step has it, the classifier's weight goes by it, and a resumed run goes on in the same order."""
    how: dict[str, Any] = {**FEW, "data": "digits", "train_size": 100, "labelled": 10, "binarization": "threshold"}
    how |= {"batch_size": 20, "labelled_share": 0.3}
    seen, give = [], Data.batch

    def batch(self: Data, index: Tensor) -> Tensor:
        assert self.train.known is not None
        seen.append((len(index), int((self.train.known[index] >= 0).sum())))
        return give(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(Data, "batch", batch)
        whole = ppl_gen.Run.fit("semi-supervised-vae", out="whole", **how)
    # 100 images in batches of 14, each with 6 more; by chance some of the 14 are labelled too
    seen = seen[-16:]  # after some that the pair is read on
    assert [size for size, _ in seen] == ([20] * 7 + [8]) * 2 and all(known >= 6 for _, known in seen)
    assert sum(known for _, known in seen) == 2 * (8 * 6 + 10)
    guide: Any = whole.guide
    assert guide.weight == pytest.approx(10 / (0.1 + 0.3 * 0.9))
    with monkeypatch.context() as patched:
        interrupt_after(11, patched)
        with pytest.raises(KeyboardInterrupt):
            ppl_gen.Run.fit("semi-supervised-vae", out="stopped", **how)
    assert same_runs(whole, ppl_gen.Run.open("stopped").resume(quiet=True))

    small = (*SHORT, "--latent-dim", "1", "--hidden-dims", "4", "--labelled-share")
    words = ["--labelled-share 0.3", "--labelled N"]
    refused(call, fit.command, "semi-supervised-vae", *small, "0.3", words=words)
    refused(call, fit.command, "vae", *small, "0.3", "--labelled", "20", words=words)
    one = ("--labelled", "20", "--batch-size", "1")
    refused(call, fit.command, "semi-supervised-vae", *small, "0.3", *one, words=["at least 2 images"])
    for share in ("0", "1"):
        words = [f"--labelled-share {share}", "above 0 and below 1"]
        refused(call, fit.command, "semi-supervised-vae", *small, share, "--labelled", "20", words=words)


def test_names_with_labels_and_missing_pixels(elsewhere: Path, call: Any, single: None) -> None:
    """One name in the table, in the comparison, on the page and in its captions, in figures and in a notebook."""
    small = (*SHORT, "--latent-dim", "1", "--hidden-dims", "4", "--missing", "0.5")
    name = "log p(x_obs | y)"
    status, out, err = call(fit.command, "conditional-vae", *small, "--out", "run")
    assert status == 0 and f"gap: {name} - ELBO" in out and "log p(x)" not in out, err
    rows = [line for line in out.splitlines() if " ± " in line and "nats" not in line]
    assert len({line.index(" ± ") for line in rows}) == 1  # the longer name moves no number
    summary = read("run/evaluation.json")
    assert summary["quantity"] == name
    text = Path("run/report.html").read_text(encoding="utf-8").split('<h2 id="terms">')[0]
    plain = html.unescape(re.sub("<script.*?</script>|<[^>]*>", "", text, flags=re.DOTALL))
    assert f"How far is the bound from {name}?" in plain and f"{name} is at least" in plain
    assert "KL(q(z | x_obs, y) ‖ p(z | x_obs, y))" in re.sub("\u2060\u00a0|\u2060|\u00a0", " ", plain).replace(
        "  ", " "
    )
    assert f"the gap {name} − ELBO over the test images" in plain and f"log {name[4:]}" in text
    bare = re.compile(r"log p\(x\)|log p\(x_obs\)|log p\(x \| y\)")
    assert not bare.search(plain) and not bare.search(text)
    status, out, err = call(compare.command, "run", "--report", "page.html")
    assert status == 0 and f"  {name}  " in out and not bare.search(out), err
    headings, first = out.splitlines()[1:3]
    assert first[headings.index(name) :].split("  ")[0].strip().startswith("≥ -")
    assert not bare.search(Path("page.html").read_text(encoding="utf-8").split('<h2 id="terms">')[0])
    run = Run.open("run")
    assert name in repr(run) and not bare.search(repr(run) + str(run.evaluation) + run.figures._repr_html_())
    comparison = Comparison(["run"])
    assert not bare.search(repr(comparison) + comparison.to_markdown() + comparison._repr_html_())
    drawn = {text.get_text() for text in comparison.figure().findobj(Text)}
    assert any(name in each for each in drawn) and not any(map(bare.search, drawn))
    # Earlier versions recorded no x_obs.
    assert quantity({"missing": 0.5}) == "log p(x_obs)" and quantity({}) == "log p(x)"
    assert quantity({"quantity": "log p(x, y)", "missing": 0.5}) == "log p(x_obs, y)"
    assert quantity({"quantity": name, "missing": 0.5}) == name


def test_clusters_are_explained(elsewhere: Path, call: Any, single: None) -> None:
    small = (*SHORT, "--latent-dim", "2", "--hidden-dims", "4", "--num-components", "3")
    assert call(fit.command, "gaussian-mixture-vae", *small, "--missing", "0.3", "--out", "run")[0] == 0
    status, out, _ = call(responsibilities.command, "run", "--num-images", "40", "--num-samples", "20")
    found = read("run/responsibilities.json")
    assert status == 0 and found["components"]["of"] == 3 and sum(row["images"] for row in found["table"]) == 40
    assert sum(row["weight"] for row in found["table"]) == pytest.approx(1, abs=1e-5) and "error" not in found
    # Everything names the site, y; the site z is another.
    assert found["site"] == "y" and "entropy of p(y | x_obs)" in out and "  p(y = k)  " in out and "p(z" not in out
    named = Run.open("run").figures
    assert "k: p(y = k | x_obs)" in named["responsibilities"].caption.text
    for name in ("responsibilities", "reconstructions"):
        assert named[name].caption.text.endswith(" Missing pixels are grey.")
    assert "p(y = k), and" in named["components_by_label"].caption.text
    figure = components_by_label(np.eye(3, dtype=int), ["0", "1", "2"], ["0", "1", "2"], np.zeros((3, 8, 8)), 3, "y")
    assert figure.axes[0].get_ylabel() == "component k, with p(y = k)"


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        ((0, 1, 2), (0, 1, 2), ""),
        ((1, 2, 3), (1, 2, 3), "no training image has the label 0: 1 of 4 classes are not trained"),
        ((0, 1), (0, 1, 4), "no training image has the labels 2, 3, 4: 3 of 5 classes are not trained"),
    ],
)
def test_classes_that_no_training_image_has(
    elsewhere: Path, call: Any, single: None, train: tuple[int, ...], test: tuple[int, ...], told: str
) -> None:
    """They are told before training; an image of a class that only the test split has is evaluated, and explained."""
    generator = np.random.default_rng(0)
    images = (generator.random((90, 3, 4)) < 0.5).astype(np.uint8)
    labels = {name: np.resize(values, 45) for name, values in (("train", train), ("test", test))}
    np.savez(
        "own.npz", train=images[:45], test=images[45:], **{f"{name}_labels": each for name, each in labels.items()}
    )
    status, _, err = call(
        fit.command, "semi-supervised-vae", "--data", "own.npz", "--labelled", str(3 * len(train)), "--latent-dim", "2",
        "--hidden-dims", "4", "--epochs", "1", "--num-samples", "20", "--out", "run",
    )  # fmt: skip
    assert status == 0 and (f"warning: {told}" in err if told else "no training image" not in err), err
    found = Run.open("run").explain(quiet=True)
    wrong = found.probabilities.argmax(1).numpy() != labels["test"][: len(found.x)]
    assert found.summary["error"]["p(y | x)"]["mean"] == pytest.approx(wrong.mean())
