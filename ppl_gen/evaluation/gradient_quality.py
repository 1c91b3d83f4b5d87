"""Gradient estimators of a discrete z, compared with the exact gradient of the ELBO at a run's weights."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, make_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.core import cli, components
from ppl_gen.core.contracts import HasELBOGradient, Objective, missing, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.core.progress import Progress
from ppl_gen.core.seeds import seed_torch
from ppl_gen.evaluation.table import Printed, title
from ppl_gen.evaluation.use_options import GradientOptions
from ppl_gen.experiment.arguments import options_class
from ppl_gen.experiment.fitted import Assembled, Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.experiment.starting import start_from
from ppl_gen.inference.exact_gradient import exact_gradient, num_states
from ppl_gen.inference.gradient_errors import gradient_errors
from ppl_gen.inference.modes import unchanged
from ppl_gen.inference.objectives import bind, construct
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.ranks import holm
from ppl_gen.inference.relaxations import check_choices
from ppl_gen.training.loop import loss_per_image
from ppl_gen.training.sweeping import with_options, with_particles

PARTS = ("guide", "model")
"""Whose parameters a gradient is of."""


@dataclass(frozen=True)
class JudgedGradients(Printed):
    """Bias, variance and cost of gradient estimators."""

    summary: Json
    """The content of `gradients.json`."""

    def __str__(self) -> str:
        return gradients_table(self.summary)


def judge_gradients(fitted: Fitted, options: GradientOptions, *, quiet: bool = False) -> JudgedGradients:
    """Compare gradient estimators with the exact gradient of the ELBO, found by enumeration of the states of z.

    Images and weights are the same for all draws. Baselines and control variates are trained before, and then fixed.

    :raises BadInput: for a pair whose z cannot be enumerated, and an objective that the pair cannot have or that is no
        estimator of the ELBO's gradient.
    """
    started = time.perf_counter()
    at = {"trained": fitted.step}
    if options.initial:
        at["initial"] = 0
    batch = fitted.images(options.split, options.num_images)
    with fitted.estimating(options.seed):
        check_choices("gradients", fitted.pair, *batch, kinds=("binary", "one-hot", "index"))
        states = num_states(fitted.pair, *batch)
        objectives = _objectives(options.objectives, fitted.pair, batch)
    points = []
    with Progress(len(at) * (1 + len(objectives)), "gradient", quiet=quiet) as progress:
        for name, step in at.items():
            assembled = fitted if name == "trained" else _before_training(fitted)
            with assembled.estimating(options.seed), torch.enable_grad(), unchanged(assembled.modules):
                points.append({"at": name, "step": step, **_judge(assembled, objectives, batch, options, progress)})
    summary: Json = {
        **fitted.provenance(options),
        "num_images": len(batch[0]),
        "states": states,
        "draws": options.draws,
        "false_alarm_rate": options.false_alarm_rate,
        "points": points,
        "options": asdict(options),
        "seconds": time.perf_counter() - started,
    }
    return JudgedGradients(summary)


def _before_training(fitted: Fitted) -> Assembled:
    """The model and the guide of a run with the weights that training started from.

    :raises BadInput: for an instance of the user's own, which has been trained in place.
    """
    for kind, given in (("model", fitted.given.model), ("guide", fitted.given.guide)):
        if given is not None and not isinstance(given, type | str):
            raise BadInput(
                f"initial: the {kind} is an instance, whose first weights are not known; hand over its class"
            )
    assembled = Assembled.make(fitted.config, fitted.data, fitted.given)
    if fitted.config.init_from is not None:
        start_from(fitted.config.init_from, assembled.model, assembled.guide)
    return assembled


# Objectives ----------------------------------------------------------------------------------------------------


def _objectives(named: Sequence[str], pair: Pair, batch: Sequence[Any]) -> dict[str, Objective]:
    """New objectives by the words that name them; by default all of the package that estimate the ELBO's gradient, and
    that the pair can have."""
    if named:
        return {each: _constructed(each) for each in named}
    found = {}
    for name, cls in components.known("objective").items():
        if offers(cls, HasELBOGradient):
            objective = construct(name)
            try:
                bind(objective, pair, *batch)
            except BadInput:
                continue
            found[name] = objective
    return found


def _constructed(words: str) -> Objective:
    """The objective in `gumbel-softmax:2,temperature=0.1`."""
    named, options = with_options("objective", words, "gumbel-softmax,temperature=0.1")
    name, particles = with_particles(named)
    count = int(particles) if particles.isdigit() else None
    if particles and count is None:
        raise BadInput(f"--objectives {words}: after the colon give the number of particles, as in rloo:4")
    objective = construct(name, num_particles=count, options=_typed(name, options))
    if missing(objective, HasELBOGradient) is not None:
        raise BadInput(
            f"--objectives {words}: its gradient is not said to be that of the ELBO, with which it would be compared; "
            "an objective says so by the attribute elbo_gradient, 'unbiased' or 'biased'"
        )
    return objective


def _typed(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The values in words such as `temperature=0.1`, of the types that the objective's options have. A word that is no
    option keeps its text: `construct` refuses it."""
    chosen = {key.replace("-", "_"): text for key, _, text in (word.partition("=") for word in words)}
    if not chosen:
        return chosen
    cls = components.find("objective", name)
    known = [option for option in components.options("objective", cls) if option.name in chosen]
    if not known:
        return chosen
    kind = make_dataclass("Words", [("objective", options_class("Objective", known))])
    flags = [f"--objective.{option.name}={chosen[option.name]}" for option in known]
    parsed: Any = cli.parse(kind, flags, f"python -m ppl_gen.fit MODEL --objective {name}", "")
    return chosen | vars(parsed.objective)


# Draws ---------------------------------------------------------------------------------------------------------


def _judge(
    assembled: Assembled,
    objectives: dict[str, Objective],
    batch: Sequence[Any],
    options: GradientOptions,
    bar: Progress,
) -> Json:
    """The exact gradient at some weights, and the errors of each objective's gradient."""
    pair = assembled.pair
    named = [(name, each) for name, each in assembled.modules.named_parameters() if each.requires_grad]
    elbo, exact = exact_gradient(pair, [each for _, each in named], *batch)
    bar.advance(1)
    # Parameters that the ELBO does not depend on are those of a baseline.
    baseline = [each for (_, each), found in zip(named, exact, strict=True) if found is None]
    kept = [(name, each, found) for (name, each), found in zip(named, exact, strict=True) if found is not None]
    parameters = [each for _, each, _ in kept]
    truth = torch.cat([found.flatten() for _, _, found in kept])
    of = torch.cat([torch.full((each.numel(),), name.startswith("guide.")) for name, each, _ in kept]).to(truth.device)
    parts = {part: rows for part, rows in zip(PARTS, (of, ~of), strict=True) if rows.any()}
    norms = {part: float(truth[rows].norm()) for part, rows in parts.items()}
    rows: list[Json] = []
    for name, objective in objectives.items():
        bar.note(name)
        bound = bind(objective, pair, *batch)  # makes the networks of an objective
        loss = partial(loss_per_image, bound, pair.model, pair.guide, *batch)
        own = objective if isinstance(objective, nn.Module) else nn.Module()
        with unchanged(own), unchanged(assembled.modules):
            seed_torch(options.seed)
            _warm_up(loss, own, baseline, assembled.config.training.learning_rate, options.warm_up)
            draws, seconds = _draws(name, loss, parameters, options.draws)
        row: Json = {
            "objective": name,
            "num_particles": getattr(objective, "num_particles", 1),
            "elbo_gradient": objective.elbo_gradient,  # type: ignore[union-attr]
            "seconds": seconds,
        }
        for part, chosen in parts.items():
            errors = gradient_errors(draws[:, chosen], truth[chosen])
            row[part] = asdict(errors.relative_to(norms[part] ** 2 or 1.0))
        rows.append(row)
        bar.advance(1)
    for part in parts:
        for row, told in zip(rows, holm([row[part]["p"] for row in rows], options.false_alarm_rate), strict=True):
            row[part]["biased"] = told
    return {"elbo": elbo, "norm": norms, "rows": rows}


def _warm_up(loss: Callable[[], Tensor], own: nn.Module, baseline: list[nn.Parameter], rate: float, steps: int) -> None:
    """Train the baselines and control variates of an objective and a guide. Model and guide do not change.

    :param own: weights of the objective.
    :param rate: learning rate.
    """
    trained = [*own.parameters(), *baseline]
    own.train()
    if trained and steps:
        adam = torch.optim.Adam(trained, lr=rate)
        for step in range(steps):
            for group in adam.param_groups:  # it falls in the second half, so that the noise of steps is averaged
                group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
            found = torch.autograd.grad(loss(), trained, allow_unused=True)
            if all(each is None for each in found):
                break
            for parameter, each in zip(trained, found, strict=True):
                parameter.grad = each
            adam.step()
        adam.zero_grad()
    own.eval()


def _draws(name: str, loss: Callable[[], Tensor], parameters: list[nn.Parameter], count: int) -> tuple[Tensor, float]:
    """Draws [draws, parameters] of the gradient of minus a loss, and processor time of one in seconds.

    :param name: the objective, for the message.
    :raises BadInput: for a gradient that is infinite or NaN.
    """
    draws = torch.empty(count, sum(each.numel() for each in parameters), device=parameters[0].device)
    started = time.process_time()
    for row in draws:
        found = torch.autograd.grad(loss(), parameters, allow_unused=True)
        parts = [
            torch.zeros_like(parameter) if each is None else each
            for parameter, each in zip(parameters, found, strict=True)
        ]
        torch.cat([each.flatten() for each in parts], out=row).neg_()
        if not bool(row.isfinite().all()):
            raise BadInput(f"--objectives {name}: its gradient is infinite or NaN; leave it out")
    return draws, (time.process_time() - started) / count


# Its table -----------------------------------------------------------------------------------------------------


def gradients_table(summary: Json) -> str:
    """The content of `gradients.json` as text."""
    s = summary
    lines = [
        f"{title(s)}: {s['num_images']} {s['split']} images of {s['data']}, exact gradient of the ELBO over "
        f"{s['states']:,} states of z, {s['draws']} draws",
        "squared bias and variance relative to the squared length of the exact gradient, ± Monte Carlo standard error",
    ]
    for point in s["points"]:
        when = "before training" if point["at"] == "initial" else f"after {point['step']:,} steps"
        for part in (part for part in PARTS if part in point["norm"]):
            length = f"length {point['norm'][part]:.3g} nats per image"
            lines.append(f"{when}, ELBO {point['elbo']:.2f}: gradient of the {part}'s parameters, {length}")
            lines.append(f"  {'objective':<28}{'squared bias':>22}{'variance':>20}{'cosine':>18}{'CPU ms':>9}")
            lines += [_line(row, part) for row in point["rows"]]
    return "\n".join(
        [
            *lines,
            f"  = 0: the bias cannot be told from zero; the test calls any unbiased gradient of a table biased with a "
            f"probability of at most {s['false_alarm_rate']:.0%}",
            "  CPU ms: processor time of a step, whose gradient is of guide and model",
        ]
    )


def _line(row: Json, part: str) -> str:
    found = row[part]
    bias = (
        f"{_short(found['bias'])} ± {_short(found['bias_se'])}"
        if found["biased"]
        else f"= 0 ± {_short(found['bias_se'])}"
    )
    variance = f"{_short(found['variance'])} ± {_short(found['variance_se'])}"
    cosine = f"{found['cosine']:.3f} ± {found['cosine_se']:.3f}"
    particles = "" if row["num_particles"] == 1 or ":" in row["objective"] else f", K = {row['num_particles']}"
    return f"  {row['objective'] + particles:<28}{bias:>22}{variance:>20}{cosine:>18}{1e3 * row['seconds']:>9.1f}"


def _short(value: float) -> str:
    """Two significant digits."""
    return f"{value:.2g}"
