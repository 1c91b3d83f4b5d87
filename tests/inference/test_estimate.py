"""An estimate by itself: how far it is trusted, how it is printed, and what an evaluation takes of it."""

import doctest
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from estimates import ONE, annealed, bidirectional, importance, low, sampled
from torch import Tensor

import ppl_gen
from ppl_gen.inference import estimate
from ppl_gen.inference.estimate import Estimate, exact, mean_se, median
from ppl_gen.inference.importance import weight_statistics
from ppl_gen.inference.proposals import SecondOpinion


def _log_px(num_samples: int, khat: float, ess: float) -> Estimate:
    values = {name: torch.zeros(1, dtype=torch.float64) for name in ("log_px", "log_px_mc_var", "log_px_bias")}
    one = torch.ones(1, dtype=torch.float64)
    return Estimate(estimator="importance", num_samples=num_samples, **values, ess=ess * one, khat=khat * one)


def test_khat_above_its_threshold_is_untrusted() -> None:
    """min(1 - 1/log10 S, 0.7) (Vehtari et al. 2024, section 3.2.4): 1/2 at S = 100, 2/3 at 1000, 0.7 from 2155 on."""
    for count, threshold in (
        (1, 0.0),
        (10, 0.0),
        (100, 1 / 2),
        (1000, 2 / 3),
        (2000, 0.6971),
        (3000, 0.7),
        (10**5, 0.7),
    ):
        assert _log_px(count, 0.0, count / 2).khat_threshold == pytest.approx(threshold, abs=1e-4)
    for count, threshold in ((1000, 2 / 3), (10**5, 0.7)):
        assert not _log_px(count, threshold - 1e-3, count / 2).untrusted.any()
        assert _log_px(count, threshold + 1e-3, count / 2).untrusted.all()
    for count in (10, 1000):  # no tail to fit: because the weights are equal, or for another reason
        assert not _log_px(count, math.nan, count).untrusted.any()
        assert _log_px(count, math.nan, count / 2).untrusted.all()
        assert _log_px(count, math.nan, math.nan).untrusted.all()
    assert _log_px(1, math.nan, 1.0).untrusted.all()  # one weight equals itself


def _from(log_w: Tensor) -> Estimate:
    return Estimate(estimator="importance", num_samples=len(log_w), **weight_statistics(log_w))


def test_unknown_khat_is_judged_by_the_largest_weight() -> None:
    """Two values of z, each drawn hundreds of times, leave nothing out, and so do 100 values of nearly one weight; one
    that was drawn once, or twice, with most of the weight, says that others like it may be missing. None has a k-hat:
    a Pareto distribution fitted to the tie of the others calls the third and the fourth harmless (0.05)."""
    torch.manual_seed(0)
    often = torch.tensor([0.0] * 500 + [-1.0] * 500, dtype=torch.float64)
    many = 0.3 * torch.randn(100, dtype=torch.float64)[torch.randint(100, (1000,))]
    once, twice = often.clone(), often.clone()
    once[0], twice[:2] = 7.0, 6.0
    found = _from(torch.stack([often, many, once, twice], 1))
    assert found.khat.isnan().all()
    assert found.untrusted.tolist() == [False, False, True, True] and not found.khat_too_high.any()
    few = _from(torch.randn(20, 3, dtype=torch.float64))
    assert few.khat_unknown.all() and not few.khat_too_high.any()
    for value in (-math.inf, math.inf, math.nan):
        nothing = _from(torch.full((1000, 1), value, dtype=torch.float64))
        assert nothing.untrusted.all()


def test_few_effective_samples_are_not_trusted() -> None:
    """One of 10,000 samples has nearly all of the weight. A Pareto distribution fitted to the 300 largest calls it
    harmless: k-hat is 0.47. Other weights like that one may be missing."""
    torch.manual_seed(0)
    log_weights = 0.1 * torch.randn(10_000, 2, dtype=torch.float64)
    log_weights[0, 0] += 12
    found = _from(log_weights)
    assert found.ess[0] < 1.2 and found.ess[1] > 9000
    assert (found.khat < found.khat_threshold).all() and not found.khat_too_high.any()
    assert found.khat_unknown.tolist() == found.untrusted.tolist() == [True, False]


def test_a_mean_has_its_errors() -> None:
    """The standard error over images, the Monte Carlo error of their mean, and their mean bias."""
    values = torch.tensor([-1.0, -2.0, -3.0, -6.0], dtype=torch.float64)
    variance, bias = torch.tensor([0.0, 0.01, 0.02, 0.13]), torch.tensor([0.0, -0.1, -0.2, -0.1])
    found = Estimate(estimator="mine", log_px=values, log_px_mc_var=variance, log_px_bias=bias, num_samples=3)
    assert found.mean == -3 and found.bias == pytest.approx(-0.1)
    assert found.se == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3) / 2)
    assert found.mc_se == pytest.approx(0.4 / 4)
    assert found.mean_se == mean_se(values) == (found.mean, found.se)
    assert math.isnan(mean_se(values[:1])[1])


def test_an_estimate_alone_says_whether_it_is_at_least() -> None:
    """k-hat says so, or nothing vouches for it; an exact value never is, and an evaluation has the last word."""
    assert not exact(ONE).at_least and not exact(ONE).sampled
    assert not sampled(-10.0).at_least and sampled(-10.0, khat=0.9 * ONE).at_least
    assert sampled(-10.0, narrower=True).at_least and sampled(-10.0, doubted=torch.arange(20) == 3).at_least
    assert replace(sampled(-10.0), log_px_mc_var=math.nan * ONE).at_least
    assert low(-10.0, num_samples=5).at_least and annealed(-10, bidirectional=bidirectional()).at_least
    assert not replace(low(-10.0), verdict=False).at_least and replace(sampled(-10.0), verdict=True).at_least


def test_a_second_opinion_makes_importance_sampling_at_least() -> None:
    above, below = (
        SecondOpinion(
            num_samples=100, from_prior=ONE, log_px=values * ONE, log_px_mc_var=1e-4 * ONE, log_px_bias=0 * ONE
        )
        for values in (-9.0, -11.0)
    )
    alone = importance(-10, -12)
    assert not alone.at_least and not replace(alone, second_opinion=below).at_least
    opposed = replace(alone, second_opinion=above)
    assert opposed.at_least and opposed.untrusted.all() and "the second opinion is above" in str(opposed)
    assert not replace(opposed, verdict=False).at_least
    third = torch.arange(20) == 3
    opposed = replace(alone, second_opinion=replace(above, log_px=torch.where(third, -1.0, -11.0).double()))
    assert torch.equal(opposed.untrusted, third)
    assert not alone.untrusted.any() and "the second opinion" not in str(alone)


def test_who_vouches_for_annealing() -> None:
    assert annealed(-10, bidirectional=bidirectional()).corroborated and not annealed(-10).corroborated
    assert not annealed(-10, bidirectional=bidirectional(20)).corroborated and not sampled(-10.0).corroborated


def test_it_prints_as_a_table() -> None:
    found = importance(-10, -12, khat=0.9)
    assert str(found) == repr(found)
    assert str(found).splitlines() == [
        "20 images, nats per image ± standard error over images",
        "ELBO      -12.00 ± 0.00",
        "log p(x)  at least -10.00 ± 0.00 by importance sampling, S = 1000",
        "gap       at least 2.00 ± 0.00",
    ]
    assert str(exact(-10 * ONE[:1])).splitlines()[1] == "log p(x)  -10.00 exact"
    assert "leaves out a part of the prior's support" in str(sampled(-10.0, narrower=True))
    assert str(annealed(-10)).splitlines()[1].endswith("by annealed importance sampling, S = 16")


def test_in_a_notebook_it_is_the_same_table_as_html() -> None:
    class Cells(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.cells: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

        def handle_data(self, data: str) -> None:
            if data.strip():
                self.cells.append(data)

    page = Cells()
    page.feed(importance(-10, -12, khat=0.9)._repr_html_())
    assert not page.open
    assert page.cells[0] == "20 images, nats per image ± standard error over images"
    for cell in ("ELBO", "-12.00", "at least -10.00", "by importance sampling, S = 1000", "at least 2.00"):
        assert cell in page.cells
    own = low(-10.0, estimator="<b>mine</b>")._repr_html_()
    assert "<b>" not in own and "&lt;b&gt;mine" in own


def test_each_estimator_has_its_own_keys_and_variables() -> None:
    """In the files of an evaluation; what is there is what the documentation lists."""
    mixed = sampled(-10.0, estimator="importance", settings={"proposal": {"guides": []}})
    for found, entry, more, variables in (
        (exact(-10 * ONE), set(), set(), set()),
        (mixed, {"num_samples", "ess", "fraction_above_threshold", "proposal"}, {"khat_it"}, {"ess_it", "khat_it"}),
        (
            annealed(-10, bidirectional=bidirectional()),
            {"num_temperatures", "num_chains", "leapfrog_steps", "schedule", "start", "acceptance", "accepted", "ess"},
            {"sandwich"},
            {"ess_it"},
        ),
        (
            importance(-10, -12),
            {"num_samples"},
            {"elbo", "reconstruction", "kl", "iwae", "iwae_jackknife", "ess", "khat"},
            {"elbo", "reconstruction", "kl", "elbo_mc_se", "ess", "khat"},
        ),
    ):
        errors = {"mc_se", "bias"} if found.sampled else set()
        assert found.entry(True).keys() == {"mean", "se", "at_least", "estimator"} | errors | entry
        assert found.entry(True)["at_least"] and found.more_entries("it").keys() == more
        named = {"log_px_it"} | ({"log_px_it_mc_se", "log_px_it_bias"} if found.sampled else set())
        assert found.variables("it").keys() == named | variables
        assert all(len(each.values) == 20 for each in found.variables("it").values())


def test_public_names() -> None:
    assert ppl_gen.Estimate is Estimate and issubclass(ppl_gen.ImportanceEstimate, Estimate)


def test_the_example_is_what_it_prints() -> None:
    assert doctest.testmod(estimate) == (0, 3)


def test_a_median_of_an_even_number() -> None:
    assert median(torch.tensor([4.0, 1.0, 2.0, 9.0])) == 3 and median(torch.tensor([4.0, 1.0, 9.0])) == 4
