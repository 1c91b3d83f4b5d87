"""Scores of samples whose quality is known."""

import math
from dataclasses import replace

import numpy as np
import torch

from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation import quality as scoring


def test_scores_know_a_collapse_and_copies() -> None:
    """Training images are as good as it gets, and are found to be copies; of one class alone, one is covered."""
    data = load_data(DataOptions("digits", "none"))
    judge = scoring.train_judge(data, 300, scoring.QualityOptions(classifier_steps=300), quiet=True)
    assert judge.accuracy > 0.9
    copies = data.targets("train")[:300]
    good = judge.scores(copies)
    assert good["classes"]["covered"] == good["classes"]["of"] == 10
    assert good["frechet"]["mean"] < 2 * judge.real["frechet"]["mean"]
    assert float(scoring.nearest(copies, judge.train)[0].max()) < 0.01
    assert data.train.labels is not None
    zeros = data.targets("train")[data.train.labels == 0]
    collapsed = judge.scores(zeros[torch.arange(300) % len(zeros)])
    assert collapsed["classes"]["covered"] == 1
    assert collapsed["classes"]["divergence"] > 2
    assert collapsed["recall"]["mean"] < 0.2 < 0.8 < good["recall"]["mean"]
    assert collapsed["frechet"]["mean"] > 10 * good["frechet"]["mean"]


def test_images_in_the_order_of_their_classes() -> None:
    """Test images, and images that are held out from the classifier, are drawn from all classes: the last training
    images are of one class, and so are the first 60 test images."""
    data = load_data(DataOptions("digits", "none"))

    def in_order(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = data.split(name).labels
        assert labels is not None
        order = labels[:count].argsort(stable=True)
        return data.targets(name)[:count][order].numpy(), labels[order].numpy()

    arrays = {"train": in_order("train", 600), "validation": in_order("validation", 50), "test": in_order("test", 300)}
    options = scoring.QualityOptions(classifier_steps=200)
    judge = scoring.train_judge(load_data(DataOptions(binarization="none"), arrays), 60, options, quiet=True)
    assert len(judge.labels.unique()) == 10
    assert judge.accuracy > 0.8
    assert judge.real["classes"]["covered"] == 10


def test_a_class_that_the_test_images_do_not_have() -> None:
    """KL(samples || data) is infinite."""
    data = load_data(DataOptions("digits", "none"))
    judge = scoring.train_judge(data, 100, scoring.QualityOptions(classifier_steps=100), quiet=True)
    others = judge.labels != 0
    judge = replace(judge, test=judge.test[others], labels=judge.labels[others])
    found = judge.scores(data.targets("train")[:100])["classes"]
    assert (found["divergence"], found["of"]) == (math.inf, 9)
