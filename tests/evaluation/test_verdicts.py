"""Estimates beside one another: which is at least, and what the gap is taken of."""

import math
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from estimates import ABOUT, ONE, annealed, bidirectional, importance, low, sampled

from ppl_gen.evaluation import verdicts
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.own_estimators import of_log_weights
from ppl_gen.evaluation.recording import per_image, summarize
from ppl_gen.inference.estimate import Estimate, exact
from ppl_gen.inference.proposals import SecondOpinion


def test_samples_that_miss_the_posterior_are_at_least() -> None:
    """All weights of a proposal that is nowhere near may be alike: annealing tells what k-hat cannot."""
    for log_px, doubted in ((-90.0, False), (-100.0, True), (-80.0, False)):
        prior = sampled(log_px, estimator="prior", usable_for_gap=False)
        assert verdicts.at_least({"prior": prior, "annealed": annealed(-90.0, 1e-4, -1e-4)}, "prior") == doubted
        assert not verdicts.at_least({"prior": prior}, "prior")


@pytest.mark.parametrize(("mc_var", "bias"), [(0.04, -0.02), (0.9, -8.0)], ids=["sure", "one chain counts"])
def test_annealing_below_the_others_is_at_least(mc_var: float, bias: float) -> None:
    """Importance sampling 66.31, ELBO 59.92, annealing 58.42: all are low, and the gap is taken of the largest, also
    where annealing states a large bias."""
    found = {
        "importance": replace(importance(66.31, 59.92), observation="density"),
        "annealed": annealed(58.42, mc_var, bias, bidirectional()),
    }
    evaluation = Evaluation.of(found, "annealed", ABOUT)
    summary = evaluation.summary
    assert summary["log_px"]["at_least"] and not summary["log_px_importance"]["at_least"]
    assert "importance" in summary["below"]["annealed"] and list(summary["below"]) == ["annealed"]
    gap = summary["gap"]
    assert gap["mean"] == pytest.approx(66.31 - 59.92) and gap["of"] == "importance" and not gap["at_least"]
    assert evaluation.to_xarray()["gap"].values == pytest.approx(66.31 - 59.92)
    notes = {row.label: row.note for row in evaluation.rows()}
    assert "importance sampling" in notes["annealing is too low:"]


def test_the_gap_is_of_a_log_px_that_is_told() -> None:
    """Where it is not that of the one row of log p(x): a reader can add it to the ELBO."""

    def noted(found: dict[str, Estimate], primary: str) -> tuple[str, dict]:
        evaluation = Evaluation.of(found, primary, ABOUT)
        (note,) = (row.note for row in evaluation.rows() if row.label == "gap: log p(x) - ELBO")
        return note, evaluation.summary["gap"]

    alone = importance(-10.0, -12.0)
    assert noted({"importance": alone}, "importance")[0] == ""
    values = {"log_px": -9.5 * ONE, "log_px_mc_var": 1e-4 * ONE, "log_px_bias": 0 * ONE}
    opinion = SecondOpinion(num_samples=100, from_prior=ONE, **values)
    asked = {"importance": replace(alone, second_opinion=opinion)}
    note, gap = noted(asked, "importance")
    assert gap["mean"] == pytest.approx(2.5)
    assert note == "from log p(x) -9.50 (second opinion)"
    opinion.log_px[:] = -10.0
    opinion.log_px[3] = -5.0
    note, gap = noted(asked, "importance")
    assert note.startswith("from log p(x) -9.75 (") and gap["mean"] == pytest.approx(2.25), gap
    both = {
        "importance": replace(importance(66.31, 59.92), observation="density"),
        "annealed": annealed(58.42, bidirectional=bidirectional()),
    }
    assert noted(both, "annealed")[0] == "from log p(x) 66.31 (importance sampling)"


def test_an_estimate_below_the_elbo_is_at_least() -> None:
    """Also where importance sampling is too uneven to tell."""
    uneven = importance(-9.0, -10.0, mc_var=0.99, khat=0.9)
    summary = summarize({"importance": uneven, "annealed": annealed(-12.0)}, "annealed")
    assert "elbo" in summary["below"]["annealed"] and summary["gap"]["mean"] > 0


def test_one_image_is_enough_to_be_at_least() -> None:
    """Where annealing is above importance sampling on one image, the gap has its value there, and only there."""
    other = annealed(-10.0)
    other.log_px[3] = -5.0
    summary = summarize({"importance": importance(-10, -12), "annealed": other}, "importance")
    assert summary["log_px"]["at_least"] and summary["gap"]["at_least"]
    assert summary["gap"]["fraction_of_others"] in (0, 1 / 20)
    assert summary["gap"]["mean"] == pytest.approx((19 * 2 + 7) / 20)


def test_estimates_that_agree_are_not_at_least() -> None:
    """Annealing is trusted where the sandwich is narrow, importance sampling is trusted, and they agree."""
    trusted, chains = importance(-10, -12), annealed(-10.02, bidirectional=bidirectional())
    agreed: dict[str, Estimate] = {"importance": trusted, "annealed": chains}
    assert not verdicts.at_least(agreed, "annealed") and not verdicts.at_least(agreed, "importance")
    doubtful: list[dict[str, Estimate]] = [
        {"annealed": replace(chains, bidirectional=None)},
        {"annealed": replace(chains, bidirectional=bidirectional(20))},
        {"annealed": replace(chains, bidirectional=bidirectional(0, 1))},
        {"importance": importance(-10, -12, khat=0.9)},
        {"annealed": annealed(-10.02, 0.04, -0.5, bidirectional())},
        {"annealed": annealed(-10.02, math.nan, math.nan, bidirectional())},
        {"annealed": annealed(-12.5, bidirectional=bidirectional())},
    ]
    for each in doubtful:
        assert verdicts.at_least(agreed | each, "annealed")
    exactly = {"exact": exact(-10 * ONE), "importance": trusted, "annealed": annealed(-10.02)}
    assert not verdicts.at_least(exactly, "annealed")
    assert verdicts.at_least(exactly | {"annealed": annealed(-12)}, "annealed")
    assert not verdicts.at_least(exactly, "exact")


def test_prior_samples_vouch_for_nothing() -> None:
    """However k-hat trusts them."""
    chains = annealed(-10.02, bidirectional=bidirectional())
    prior = sampled(-10.0, estimator="prior", usable_for_gap=False)
    found = {"importance": importance(-10, -12, khat=0.9), "prior": prior, "annealed": chains}
    assert not verdicts.at_least(found, "prior") and verdicts.at_least(found, "annealed")
    assert not verdicts.at_least(found | {"mixed": sampled(-10.0)}, "annealed")


@pytest.mark.parametrize(
    ("wide", "count", "most"), [(0, 100, 1 - 0.05 ** (1 / 100)), (0, 1000, 0.0029912), (2, 100, 0.061616), (5, 5, 1.0)]
)
def test_a_sandwich_says_what_it_has_not_seen(wide: int, count: int, most: float) -> None:
    """The upper 95 % limit of a share (Clopper and Pearson): about 3/n where none of n is wide, and in any case the
    share at which so few wide images have a probability of 5 %."""
    found = {"importance": importance(-10, -12), "annealed": annealed(-10, bidirectional=bidirectional(wide, count))}
    evaluation = Evaluation.of(found, "annealed", ABOUT)
    said = evaluation.summary["sandwich"]["wide"]
    assert said["num_images"] == wide and said["fraction_at_most"] == pytest.approx(most, rel=1e-4)
    if wide < count:
        chance = sum(math.comb(count, k) * most**k * (1 - most) ** (count - k) for k in range(wide + 1))
        assert chance == pytest.approx(0.05, rel=1e-3)
    row = next(row.note for row in evaluation.rows() if "images from the model" in row.label)
    assert f"at most {most:.1%} of the model's images are" in row
    unvouched = found | {"importance": importance(-10, -12, khat=0.9)}
    assert verdicts.at_least(unvouched, "annealed")  # the sandwich alone does not suffice


def test_the_gap_begins_with_an_estimate_that_guides_are_judged_by() -> None:
    """A primary estimate from the prior is no such estimate, whatever its mean; one of several proposals is."""
    guided, few = importance(-10, -12), sampled(-10.4, estimator="prior", usable_for_gap=False)
    few.log_px_mc_var[:] = 1.0  # by less than its error
    assert verdicts.largest({"importance": guided, "prior": few}, "prior").name == "importance"
    assert verdicts.largest({"importance": guided, "mixed": replace(few, usable_for_gap=True)}, "mixed").name == "mixed"
    known = verdicts.largest({"exact": exact(-9 * ONE), "importance": guided}, "importance")
    assert known.name == "exact" and not known.at_least and known.log_px.tolist() == [-9] * 20
    high = {"exact": exact(-12 * ONE), "importance": guided}
    assert verdicts.too_high(high) == ["importance"] and verdicts.largest(high, "importance").name == "exact"
    above_zero = {"importance": replace(importance(1, -2), observation="probability")}
    assert verdicts.too_high(above_zero) == ["importance"]
    assert verdicts.largest(above_zero, "importance").log_px.tolist() == [1] * 20


def test_all_that_is_known_from_below_in_the_order_that_it_is_told_in() -> None:
    values = {"log_px": -9.5 * ONE, "log_px_mc_var": 1e-4 * ONE, "log_px_bias": 0 * ONE}
    guided = replace(importance(-10, -12), second_opinion=SecondOpinion(num_samples=100, from_prior=ONE, **values))
    found = {"exact": exact(-9 * ONE), "importance": guided, "annealed": annealed(-10), "mine": low(-11.0)}
    names = ["exact", "elbo", "importance", "annealed", "mine", "second_opinion"]
    lower = verdicts.lower_bounds(found)
    assert list(lower) == names and lower["elbo"].log_px.tolist() == [-12] * 20
    assert verdicts.below(found, "mine") == ["exact", "importance", "annealed", "second_opinion"]


def test_where_two_estimates_disagree() -> None:
    """By more than four errors and the biases that they state."""
    other = importance(-10.0, -12.0, mc_var=0.0)
    chains = annealed(-10.0, mc_var=0.01, bias=-0.1)
    chains.log_px[:3] = torch.tensor([-10.45, -10.55, -9.45], dtype=torch.float64)  # 4 x 0.1 + 0.1 is allowed
    difference, apart = verdicts.disagreement(chains, other)
    assert difference[:3].tolist() == pytest.approx([-0.45, -0.55, 0.55])
    assert apart.tolist() == [False, True, True] + [False] * 17
    assert not verdicts.disagreement(annealed(-20.0, math.nan, math.nan), other)[1].any()


def test_values_per_image_are_those_of_the_summary() -> None:
    """Every mean of the summary that has values per image is their mean."""
    found = {"importance": importance(-10, -12), "mixed": sampled(-10.1), "annealed": annealed(-10)}
    variables, summary = per_image(found, "mixed"), summarize(found, "mixed")
    means = {key for key, entry in summary.items() if isinstance(entry, dict) and "mean" in entry} - {"disagreement"}
    assert {"elbo", "log_px", "log_px_importance", "log_px_annealed", "gap"} <= means <= variables.keys()
    for key in means:
        assert float(variables[key].values.mean()) == pytest.approx(summary[key]["mean"])


@pytest.mark.parametrize("by", ["exact", "quadrature"])
def test_an_estimate_above_a_known_value_is_too_high(by: str) -> None:
    """It is no evidence against others: importance sampling at the exact value is not too low."""
    truth = replace(exact(-90 * ONE), estimator=by)
    one_above, within = (sampled(log_px, estimator="mine") for log_px in (-89.0, -90.0))
    found = {"importance": importance(-90.0, -91.0), by: truth, "mine": one_above}
    assert verdicts.too_high(found) == ["mine"] and not verdicts.below(found, "importance")
    evaluation = Evaluation.of(found, by, ABOUT)
    assert evaluation.summary["too_high"] == ["mine"] and "below" not in evaluation.summary
    notes = {row.label: row.note for row in evaluation.rows()}
    assert notes["mine is too high:"] == f"above log p(x) by {by}: it is not low in expectation"
    assert evaluation.summary["gap"]["mean"] == pytest.approx(1.0)
    assert not verdicts.too_high({**found, "mine": within})
    assert not verdicts.too_high({"importance": found["importance"], "mine": one_above})


def test_the_gap_is_of_no_estimator_of_ones_own() -> None:
    """One that forgets log S, or returns probabilities, would make it the size of log p(x)."""
    found = {"importance": importance(-90.0, -91.0), "mine": sampled(-0.5, estimator="mine")}
    evaluation = Evaluation.of(found, "importance", ABOUT)
    assert evaluation.summary["gap"] == {**evaluation.summary["gap"], "mean": pytest.approx(1.0), "of": "importance"}
    assert evaluation.to_xarray()["gap"].values == pytest.approx(1.0)
    assert evaluation.summary["log_px"]["at_least"] and "too_high" not in evaluation.summary
    notes = {row.label: row.note for row in evaluation.rows()}
    assert notes["importance sampling is too low:"] == "below mine, which may also be too high"


@pytest.mark.parametrize(("observation", "wrong"), [("probability", True), ("density", False)])
def test_no_log_probability_is_above_0(observation: str, wrong: bool) -> None:
    guided = replace(importance(-90.0, -91.0), observation=observation)
    found = {"importance": guided, "mine": sampled(90.0, estimator="mine")}
    evaluation = Evaluation.of(found, "importance", ABOUT)
    assert (evaluation.summary.get("too_high") == ["mine"]) is wrong
    assert evaluation.summary["log_px"]["at_least"] is not wrong  # what is wrong tells nothing of others
    notes = {row.label: row.note for row in evaluation.rows()}
    assert ("mine is too high:" in notes) is wrong
    if wrong:
        assert notes["mine is too high:"] == "above 0, which no log-probability is: it is not low in expectation"


@pytest.mark.parametrize(("value", "too_low"), [(-90.45, True), (-90.0, False)])
def test_a_stated_bias_does_not_excuse_annealing_below_a_known_value(value: float, too_low: bool) -> None:
    """0.45 nats below, 20 images with an error of 0.09 for their mean and a stated bias of 0.27."""
    low_one = annealed(value, 0.16, -0.27)
    found = {"importance": importance(-91.0, -92.0), "quadrature": replace(exact(-90 * ONE), estimator="quadrature")}
    assert verdicts.at_least({**found, "annealed": low_one}, "annealed") == too_low


def test_bounds_that_cross_support_nothing() -> None:
    """An upper bound below the lower one, and an exact value outside: annealing of angles made such bounds."""
    good = bidirectional()
    crossed = replace(good, upper=good.lower - 0.3)
    assert annealed(-10, 1e-4, -1e-4, good).corroborated and not annealed(-10, 1e-4, -1e-4, crossed).corroborated
    for wrong in (crossed, replace(good, exact=good.upper + 0.5), replace(good, exact=good.lower - 0.5)):
        found = {"importance": importance(-10, -12), "annealed": annealed(-10, bidirectional=wrong)}
        assert "the bounds are wrong" in str(Evaluation.of(found, "annealed", ABOUT))
    at_the_end = replace(good, exact=good.lower)
    found = {"importance": importance(-10, -12), "annealed": annealed(-10, bidirectional=at_the_end)}
    assert "the bounds are wrong" not in str(Evaluation.of(found, "annealed", ABOUT))


def test_images_of_a_fine_khat_are_high_by_selection() -> None:
    """Fifty weights of mean 1 from a wide guide: those of images whose k-hat is fine are the larger ones. The test of
    all images together finds them too high in 3 of 40 repetitions; a rate of 1 in 1,000 finds none 96 times in 100."""
    zero = torch.zeros(300, dtype=torch.float64)
    wrong = 0
    for _ in range(40):
        z = 2.5 * torch.randn(50, 300, 4, dtype=torch.float64)
        log_weights = (dist.Normal(zero.new_zeros(()), 1.0).log_prob(z) - dist.Normal(0.0, 2.5).log_prob(z)).sum(-1)
        wrong += bool(verdicts.too_high({"exact": exact(zero), "mine": of_log_weights("mine", log_weights)}))
    assert wrong == 0


@pytest.mark.parametrize("few", [-40.0, -math.inf, math.nan])
def test_a_few_low_images_hide_no_estimate_that_is_too_high(few: float) -> None:
    """0.1 nats on a thousand images are found by the bets, which are on all of them."""
    zero = torch.zeros(1000, dtype=torch.float64)
    high = zero + 0.1
    high[:5] = few
    mine = Estimate(estimator="mine", num_samples=100, log_px=high, log_px_mc_var=zero + 0.04, log_px_bias=zero)
    assert verdicts.too_high({"exact": exact(zero), "mine": mine}) == ["mine"]
