"""Telling spliced images, against what is known of scores and tests."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation import splicing


def test_spliced_images_are_the_left_of_one_and_the_right_of_another() -> None:
    left, right = torch.zeros(2, 3, 5), torch.ones(2, 3, 5)
    spliced = splicing.splice(left.flatten(1), right.flatten(1), (3, 5)).reshape(2, 3, 5)
    assert (spliced[..., :2] == 0).all() and (spliced[..., 2:] == 1).all()


@pytest.mark.parametrize("counts", [[10] * 10, [50, 30, 20], [1, 1], [4, 1, 1, 2]])
def test_a_pair_has_two_classes(counts: list[int]) -> None:
    """Up to half of all images in one class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    for seed in range(20):
        left, right = splicing.pair_up(labels, torch.Generator().manual_seed(seed))
        assert (labels[left] != labels[right]).all()
        assert sorted([*left.tolist(), *right.tolist()]) == list(range(len(labels)))


def test_too_many_of_one_class() -> None:
    with pytest.raises(BadInput, match="more than half"):
        splicing.pair_up(torch.tensor([0, 0, 0, 1]), torch.Generator())


def test_area_under_the_curve_and_its_error() -> None:
    """Scores N(0, 1) against N(1, 1): the area is Phi(1 / sqrt 2), and the error is the spread over repetitions."""
    rng = np.random.default_rng(0)
    found = np.array([splicing.roc_auc(rng.normal(1, 1, 120), rng.normal(0, 1, 80)) for _ in range(400)])
    area = dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5**0.5)).item()
    assert abs(found[:, 0].mean() - area) < 4 * found[:, 0].std() / 20  # once in 16,000 seeds
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.15)  # 4 standard errors of a spread of 400


def test_false_alarms_are_as_many_as_asked_for() -> None:
    """Bounds of 4 binomial standard errors, once in 2,000 seeds over the 7 sizes and 2 bounds. With float32's ties."""
    rng = np.random.default_rng(1)
    natural, spliced = (-rng.gamma(2, 20, count).astype(np.float32).astype(float) for count in (400, 200))
    natural[:20] = natural[20:40]
    for rate in (0.05, 0.2):
        test = splicing.two_sample_test(natural, spliced - 15, rate, 2000, seed=2)
        bound = 4 * (rate * (1 - rate) / 2000) ** 0.5
        assert list(test["power"]) == ["1", "2", "5", "10", "20", "50", "100"]
        for size, entry in test["false_alarms"].items():
            assert abs(entry["mean"] - rate) <= bound + (0.005 if size == "1" else 0), (rate, size)
        power = [entry["mean"] for entry in test["power"].values()]
        assert power == sorted(power) and power[-1] == 1


def test_batches_are_no_larger_than_there_are_images() -> None:
    rng = np.random.default_rng(0)
    test = splicing.two_sample_test(rng.normal(size=24), rng.normal(size=12), 0.05, 10, seed=0)
    assert list(test["power"]) == ["1", "2", "5", "10"] and test["reference"] == 12
