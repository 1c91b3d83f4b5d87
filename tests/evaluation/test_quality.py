"""Scores of samples whose quality is known."""

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
