"""Conversion of estimates to `evaluation.json` and `evaluation.nc`, and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_gen.evaluation import entries, verdicts
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.estimate import Estimate, Variable, mean_entry, share

if TYPE_CHECKING:
    import xarray

Estimates = Mapping[str, Estimate]


def summarize(estimates: Estimates, primary: str) -> Json:
    """The means over images, in nats, for `evaluation.json`.

    :param estimates: estimates by name, in the order of the report. `exact`, `quadrature` or `importance` is among
        them.
    :param primary: name of the estimate that is the evaluation's log p(x).
    """
    summary: Json = {}
    for name, estimate in estimates.items():
        summary |= estimate.more_entries(name)
    guided = verdicts.guide_estimate(estimates)
    if guided is None:  # the ELBO is log p(x)
        summary["elbo"] = mean_entry(estimates[verdicts.known_of(estimates) or primary].log_px)
    for name, estimate in estimates.items():
        summary["log_px" if name == primary else f"log_px_{name}"] = estimate.entry(verdicts.at_least(estimates, name))
    if guided is None:
        return summary
    sampled = [name for name, estimate in estimates.items() if estimate.sampled]
    below = {name: others for name in sampled if (others := verdicts.below(estimates, name))}
    if below:
        summary["below"] = below
    if wrong := verdicts.too_high(estimates):
        summary["too_high"] = wrong
    if "annealed" in estimates:
        difference, apart = verdicts.disagreement(estimates["annealed"], guided)
        summary["disagreement"] = mean_entry(difference, fraction_beyond_errors=share(apart))
    of = verdicts.largest(estimates, primary)
    summary["gap"] = mean_entry(
        of.log_px - guided.elbo, at_least=of.at_least, of=of.name, fraction_of_others=share(of.replaced)
    )
    return summary


def per_image(estimates: Estimates, primary: str) -> dict[str, Variable]:
    """Every variable of `evaluation.nc` whose only dimension is the image, by name. `log_px` is that of the primary
    estimate."""
    variables: dict[str, Variable] = {}
    for name, estimate in estimates.items():
        variables |= estimate.variables(name)
    variables |= estimates[primary].log_px_variables("log_px")
    guided = verdicts.guide_estimate(estimates)
    if guided is None:
        return variables | {"elbo": Variable(estimates[verdicts.known_of(estimates) or primary].log_px, "ELBO")}
    of = verdicts.largest(estimates, primary)
    variables["gap"] = Variable(of.log_px - guided.elbo, "log p(x) - ELBO")
    untrusted = of.untrusted if verdicts.known_of(estimates) else of.untrusted | estimates[primary].untrusted
    title = "log p(x) and gap at least: k-hat too high or unknown, or another estimate above"
    variables["untrusted"] = Variable(untrusted.to(torch.int8), title, "1")
    if "annealed" in estimates:
        apart = verdicts.disagreement(estimates["annealed"], guided)[1].to(torch.int8)
        title = "annealing and importance sampling differ beyond their errors"
        variables["disagrees"] = Variable(apart, title, "1")
    return variables


def dataset(estimates: Estimates, primary: str, summary: Json, labels: Tensor | None) -> "xarray.Dataset":
    """The content of `evaluation.nc`.

    :param summary: the content of `evaluation.json`. Its plain values become the attributes.
    """
    import xarray

    of_images = per_image(estimates, primary)
    variables: dict[str, Any] = {
        name: ("image", variable.values.numpy(), {"long_name": variable.title, "units": variable.units})
        for name, variable in of_images.items()
    }
    coordinates: dict[str, Any] = {"image": range(len(of_images["elbo"].values))}
    attributes: dict[str, Any] = {
        key: int(value) if isinstance(value, bool) else value  # the format has no truth values
        for key, value in summary.items()
        if isinstance(value, str | int | float)
    }
    attributes["estimator"] = estimates[primary].estimator
    guided = verdicts.guide_estimate(estimates)
    if guided is not None:
        iwae = torch.stack(list(guided.iwae.values()), 1).numpy()
        variables["iwae"] = (("image", "k"), iwae, {"long_name": "IWAE bound", "units": "nats"})
        coordinates["k"] = list(guided.iwae)
        attributes["num_samples"] = guided.num_samples
    if labels is not None:
        coordinates["label"] = ("image", labels.numpy())
    return xarray.Dataset(variables, coordinates, attributes)


def estimate(summary: Json, images: "xarray.Dataset", name: str) -> Estimate:
    """A recorded estimate of log p(x). Its Monte Carlo variance is the square of the recorded error, and its verdict
    the recorded one.

    :param name: name of the estimate: `exact`, `importance`, ….
    """
    entry = entries.entry_of(summary, name)
    assert entry is not None
    prefix = f"log_px_{name}"
    suffix = "" if name == "importance" else f"_{name}"

    def values(variable: str) -> Tensor | None:
        return torch.from_numpy(images[variable].values) if variable in images else None

    log_px, mc_se, bias = (values(f"{prefix}{end}") for end in ("", "_mc_se", "_bias"))
    assert log_px is not None
    outcome = values(f"outcome{suffix}")  # each image with a threshold of k-hat of its own
    doubted = values(f"doubted{suffix}") if outcome is None else outcome == 0
    return Estimate(
        estimator=entry["estimator"],
        log_px=log_px,
        log_px_mc_var=torch.zeros_like(log_px) if mc_se is None else mc_se.square(),
        log_px_bias=torch.zeros_like(log_px) if bias is None else bias,
        num_samples=entry.get("num_samples", entry.get("num_chains")),
        ess=values(f"ess{suffix}"),
        khat=values(f"khat{suffix}") if outcome is None else None,
        doubted=None if doubted is None else doubted.bool(),
        largest=values("largest_weight") if name == "importance" else None,
        narrower=name == "importance" and bool(summary.get("narrower", False)),
        words=str(images[prefix].attrs.get("long_name", "")).removeprefix("log p(x) by "),
        usable_for_gap=entry["estimator"] != "prior",
        verdict=entry["at_least"],
        settings=entries.settings(entry),
    )
