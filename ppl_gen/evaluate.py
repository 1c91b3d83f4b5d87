"""`python -m ppl_gen.evaluate RUN`: the bound against log p(x)."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from ppl_gen import cli, parallel
from ppl_gen.components import class_name, is_external
from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.data import Data, SplitName
from ppl_gen.errors import BadInput, describe, require, require_choices
from ppl_gen.experiment.assembling import Checkpoint
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.fitted import Named
from ppl_gen.inference.agreement import bound
from ppl_gen.inference.annealed import Annealed, Annealing, Sandwich, annealed_log_px, sandwich
from ppl_gen.inference.annealed import check as check_annealing
from ppl_gen.inference.callables import evaluating, takes_labels
from ppl_gen.inference.exact import closed_form, exact_blocks, state_posterior
from ppl_gen.inference.gaps import Search, check_guide, gaps, has_own_weights
from ppl_gen.inference.importance import Estimates, log_marginal_likelihood
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import check as check_proposals
from ppl_gen.inference.proposals import opinion_samples, proposal_log_px, second_opinion
from ppl_gen.inference.state_memory import block_size, cheap, require_memory
from ppl_gen.loading import estimating, heading, open_fitted, read_pair, restricted
from ppl_gen.progress import Progress
from ppl_gen.report import write_report
from ppl_gen.runs import GROUP, RunDirectory
from ppl_gen.summaries import (
    Found,
    dataset,
    first_of,
    gap_parts,
    gap_table,
    observation,
    summarize,
    table,
)


@dataclass(frozen=True)
class EvaluationOptions:
    """What to estimate, and on which images."""

    split: SplitName = "test"
    """Images to evaluate."""
    num_images: int | None = None
    """The first N of the split; all by default."""
    num_samples: int | None = None
    """Importance samples of z per image; by default as many as after training. The literature's is 5000."""
    estimator: Literal["auto", "exact", "importance", "annealed", "prior"] = "auto"
    """Of log p(x). auto: exact where every latent value can be enumerated, or the model has a closed form, else
    importance. annealed: annealed importance sampling, which needs no guide. prior: importance sampling from the prior.
    What else there is to have stands beside it."""
    prior_share: float = 0.0
    """Of the importance samples, this share is drawn from the prior in place of the guide."""
    temperature: float = 1.0
    """Importance samples are spread about the guide's mean by this factor; below 1, drawn together."""
    proposals: tuple[Path, ...] = ()
    """Further runs whose guides share the importance samples with this run's; of the same model, as --refit-guide makes
    them."""
    proposal_guides: tuple[str, ...] = ()
    """file.py:Class of the guides of --proposals, again, that are your own and not this run's."""
    annealed: Annealing = field(default_factory=Annealing)
    sandwich: int = 100
    """With --estimator annealed: images drawn from the model, whose log p(x) is bounded from both sides with the same
    settings; 0 for none."""
    checkpoint: Checkpoint = "last"
    """The last weights, or those of the epoch with the best validation ELBO."""
    gaps: bool = False
    """Split log p(x) - ELBO into approximation and amortization gap instead, on 100 images and with 5000 samples if not
    told otherwise; into gaps.json. The search of contexts stays in the encoder's mode of p(z|x): gaps.json says where
    samples of the prior find more elsewhere. With --estimator annealed, log p(x) is annealed where that is the
    larger."""
    gap_copies: int = 3
    """Images whose gaps are also split with a copy, for each, of the weights of a guide whose posterior(context) has
    weights of its own, such as a flow."""
    seed: int = 0
    """Of the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("num_images", "num_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require(0 <= self.prior_share <= 1, "prior_share", self.prior_share, "must be from 0 to 1")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "must be a number above 0")
        require(self.sandwich >= 0, "sandwich", self.sandwich, "must be at least 0")
        if self.estimator != "annealed" and (self.annealed != Annealing() or self.sandwich != 100):
            raise BadInput(f"--estimator {self.estimator}: --annealed.* and --sandwich are of --estimator annealed")
        if self.mixes and self.estimator not in ("auto", "importance"):
            raise BadInput(
                f"--estimator {self.estimator}: --prior-share, --temperature and --proposals are of importance sampling"
            )
        if self.prior_share == 1 and (self.proposals or self.temperature != 1):
            raise BadInput("--prior-share 1: leaves no sample for --proposals, or to spread by --temperature")
        if self.proposal_guides and not self.proposals:
            raise BadInput("--proposal-guides: are of --proposals")
        require(self.gap_copies >= 0, "gap_copies", self.gap_copies, "must be at least 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")

    @property
    def mixes(self) -> bool:
        """Whether the importance samples are to come from more than the guide."""
        return self.prior_share > 0 or self.temperature != 1 or bool(self.proposals)


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[EvaluationOptions, tyro.conf.arg(name="")] = field(default_factory=EvaluationOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def evaluate(
    run: RunDirectory,
    config: Config,
    model: nn.Module,
    guide: nn.Module,
    data: Data,
    options: EvaluationOptions,
    quiet: bool = False,
    others: Sequence[nn.Module] = (),
) -> dict[str, Any]:
    """Estimate, write `evaluation.nc` and `evaluation.json`, and return the content of the latter.

    :param others: the guides of `options.proposals`.
    """
    split = data.split(options.split)
    count = len(split) if options.num_images is None else options.num_images
    require(count <= len(split), "num_images", count, f"the {options.split} split has {len(split)}")
    num_samples = options.num_samples or config.num_samples
    whole = data.targets(options.split)[:count]
    require(count >= parallel.size(), "num_images", count, f"there are {parallel.size()} processes")
    rows = parallel.shard(torch.arange(count, device=whole.device))
    x = whole[rows]
    pair, _ = read_pair(model, guide, data)
    if options.estimator == "annealed":
        _check_annealing(model, guide, pair, x, options)
        between_images = len(parallel.shard(torch.arange(options.sandwich)))
        options = replace(options, sandwich=between_images)
    labels = None if split.labels is None else split.labels[:count]
    args = (labels[rows],) if labels is not None and takes_labels(model, guide) else ()
    exactly, sampled = estimators(model, pair, options.estimator, x.device, *args)

    mixed_of: list[nn.Module] | None = None
    shares: dict[str, Any] = {}
    if options.mixes or options.estimator == "prior":
        mixed_of, share = ([], 1.0) if options.estimator == "prior" else ([guide, *others], options.prior_share)
        shares = {"num_samples": num_samples, "prior_share": share, "temperature": options.temperature}
        with estimating(model, guide, data, 0):
            check_proposals(model, mixed_of, x[:8], *(each[:8] for each in args), **shares)

    started = time.perf_counter()
    with estimating(model, guide, data, parallel.seed(options.seed)):
        found = Found(
            exact=exactly_known(model, guide, pair, x, args, quiet) if exactly else None,
            importance=by_sampling(model, guide, x, args, num_samples, quiet) if sampled else None,
        )
        if found.importance is not None and found.exact is None:
            opinion = {"num_samples": opinion_samples(num_samples), "seed": parallel.seed(options.seed)}
            found = replace(found, second_opinion=second_opinion(model, guide, x, *args, **opinion))
        if mixed_of is not None:
            with Progress(len(x), "image", quiet=quiet) as progress:
                mixed = proposal_log_px(
                    model,
                    mixed_of,
                    x,
                    *args,
                    **shares,
                    progress=_noting(progress, f"{num_samples} samples of other proposals"),
                )
            found = replace(found, prior=mixed) if options.estimator == "prior" else replace(found, mixed=mixed)
        if options.estimator == "annealed":
            annealed, between = _annealed(model, guide, x, args, options, quiet)
            found = replace(found, annealed=annealed, sandwich=between)
        in_use = _in_use(model, pair, whole)
    found = parallel.all_gather(found)
    summary = {
        **heading(run, config, data, options),
        "num_images": count,
        "images_sha256": hashlib.sha256(whole.cpu().numpy().tobytes()).hexdigest(),
        "observation": observation(pair, whole, *(() if not args or labels is None else (labels,))),
        **summarize(found, first_of(found, options.estimator), _proposal(options)),
        **({"proposal": "prior"} if pair.enumerated and sampled else {}),
        **({"components": {"in_use": in_use, "of": pair.num_states}} if in_use is not None else {}),
        "num_parameters": sum(p.numel() for p in nn.ModuleDict({"model": model, "guide": guide}).parameters()),
        "seconds": time.perf_counter() - started,
    }
    per_image = dataset(found, None if labels is None else labels.cpu(), summary)
    run.write_file("evaluation.nc", lambda path: per_image.to_netcdf(path, group=GROUP, engine="h5netcdf"))
    run.write_json("evaluation.json", summary)  # last: it says that the evaluation is complete
    return summary


def _proposal(options: EvaluationOptions) -> dict[str, Any]:
    """What importance samples are drawn from beside the guide, for the record."""
    return {
        "prior_share": options.prior_share,
        "temperature": options.temperature,
        "guides": [] if options.prior_share == 1 else ["own", *map(str, options.proposals)],
        **({"named": list(options.proposal_guides)} if options.proposal_guides else {}),
    }


def _annealed(
    model: nn.Module, guide: nn.Module, x: torch.Tensor, args: tuple[Any, ...], options: EvaluationOptions, quiet: bool
) -> tuple[Annealed, Sandwich | None]:
    """log p(x) by annealing, and between two bounds on data from the model with the same settings."""
    annealing = options.annealed
    work = len(x) * annealing.work + options.sandwich * annealing.sandwich_work
    with Progress(work, "image x temperature", quiet=quiet) as progress:
        what = f"annealed, {annealing.num_chains} chains, {annealing.num_temperatures} temperatures"
        advance = _noting(progress, what)
        found = annealed_log_px(model, x, guide=guide, annealing=annealing, progress=advance)
        if not options.sandwich:
            return found, None
        return found, sandwich(model, options.sandwich, guide=guide, annealing=annealing, progress=advance)


def _check_annealing(model: Any, guide: Any, pair: Pair, x: torch.Tensor, options: EvaluationOptions) -> None:
    """Raise `BadInput` for a model that cannot be annealed, or that its `prior()` and `likelihood(z)` do not tell all
    of, before any work is done."""
    if takes_labels(model, guide):
        raise BadInput("--estimator annealed: takes a model and a guide without labels")
    if len(pair.latent) != 1 or len(pair.observed) != 1:
        has = f"{', '.join(pair.latent)} and observes {', '.join(pair.observed)}"
        raise BadInput(f"--estimator annealed: takes one latent site and one observed; {pair.model_name} has {has}")
    with evaluating(model, guide):
        check_annealing(model, guide, options.annealed)
        z = model.prior().sample((2, min(3, len(x))))
        try:
            together = model.likelihood(z).log_prob(x[:3])
            alone = torch.stack([model.likelihood(each).log_prob(x[:3]) for each in z])
            same = together.shape == alone.shape and torch.allclose(together, alone, rtol=1e-4, atol=1e-3)
        except Exception as error:  # somebody else's code
            raise BadInput(f"{pair.model_name}: likelihood(z) fails on chains of images: {describe(error)}") from error
        if not same:
            raise BadInput(
                f"{pair.model_name}: likelihood(z) of z [chains, images, ...] is not that of each chain alone"
            )


def _noting(progress: Progress, text: str) -> Callable[[int], None]:
    def advance(units: int) -> None:
        progress.advance(units)
        progress.note("log p(x)", text, every=10)

    return advance


def other_guides(options: EvaluationOptions, named: Named) -> list[nn.Module]:
    """The guides of `options.proposals`."""
    guides = []
    unused = set(options.proposal_guides)
    for path in options.proposals:
        other = RunDirectory.open(path)
        again, recorded = restricted(other, named), str(other.config.get("guide"))
        if is_external(recorded):
            alike = [name for name in options.proposal_guides if class_name(name) == class_name(recorded)]
            if alike:
                chosen = recorded if recorded in alike else alike[0]
                if chosen != recorded and len(alike) > 1:
                    raise BadInput(f"--proposal-guides {' '.join(alike)}: which of them is {recorded}, of {path}?")
                again = replace(again, guide=chosen)
                unused.discard(chosen)
            elif class_name(str(named.guide)) != class_name(recorded):
                raise BadInput(
                    f"{path}: was fitted with the guide {recorded}; name it again: --proposal-guides {recorded}"
                )
        guides.append(open_fitted(path, again, device=options.device)[3])
    if unused:
        raise BadInput(f"--proposal-guides {' '.join(sorted(unused))}: no run of --proposals was fitted with that")
    return guides


def estimators(
    model: nn.Module, pair: Pair, asked: str, device: torch.device, *args: torch.Tensor
) -> tuple[bool, bool]:
    """Whether to take the exact value, and whether to draw importance samples.

    :param args: labels, if the model takes them.
    """
    if closed_form(model, *args):
        return True, True
    if pair.num_states is None:
        if asked == "exact":
            raise BadInput(
                f"--estimator exact: a latent site of {pair.model_name} has no finite support, and the model no "
                "log_px(x); use importance"
            )
        return False, True
    exactly = asked == "exact" or cheap(pair) or (pair.enumerated and asked == "auto")
    if exactly:
        require_memory(pair, block_size(pair), device=device)
    return exactly, asked == "importance" or not pair.enumerated


def exactly_known(
    model: nn.Module, guide: nn.Module, pair: Pair, x: torch.Tensor, args: tuple[torch.Tensor, ...], quiet: bool
) -> torch.Tensor:
    """Exact log p(x) [images], with progress."""
    blocks = []
    with Progress(len(x), "image", quiet=quiet) as progress:
        for block in exact_blocks(model, guide, pair, x, *args):
            blocks.append(block)
            progress.advance(len(block))
            states = "" if pair.num_states is None else f", {pair.num_states:,} states"
            progress.note("log p(x)", f"exact{states}", every=10)
    return torch.cat(blocks)


def by_sampling(
    model: nn.Module, guide: nn.Module, x: torch.Tensor, args: tuple[torch.Tensor, ...], num_samples: int, quiet: bool
) -> Estimates:
    """Importance sampling, with progress."""
    with Progress(len(x), "image", quiet=quiet) as progress:
        advance = _noting(progress, f"{num_samples} samples per image")
        options: dict[str, Any] = {"num_samples": num_samples, "progress": advance, "ask_again": False}
        return log_marginal_likelihood(model, guide, x, *args, **options)


def _in_use(model: nn.Module, pair: Pair, x: torch.Tensor) -> int | None:
    """How many values of a categorical z explain an image's worth of x; None for other models."""
    if pair.num_states is None or list(pair.event_shapes.values()) != [()]:
        return None
    if not (offers(model, HasDensity) and cheap(pair)):
        return None
    size = block_size(pair, posterior=True)
    totals = torch.stack([state_posterior(model, block)[1].sum(1) for block in x.split(size)]).sum(0)
    return int((totals >= 1).sum())


def split_gap(
    run: RunDirectory,
    config: Config,
    model: nn.Module,
    guide: Any,
    data: Data,
    options: EvaluationOptions,
    quiet: bool = False,
) -> dict[str, Any]:
    """The gap and its two parts (`ppl_gen.inference.gaps`): written to `gaps.json`, and returned."""
    if options.mixes or options.estimator in ("prior", "exact"):
        raise BadInput("--gaps: takes --estimator importance or annealed, and samples of the guide alone")
    if takes_labels(model, guide):
        raise BadInput(f"--gaps: {config.model} or its guide takes labels, which a search of contexts has not")
    split = data.targets(options.split)
    count = min(100, len(split)) if options.num_images is None else options.num_images
    require(count <= len(split), "num_images", count, f"the {options.split} split has {len(split)}")
    num_samples = options.num_samples or 5000
    x, search = split[:count], Search()
    pair, _ = read_pair(model, guide, data)
    check_guide(pair, guide)
    if options.estimator == "annealed":
        _check_annealing(model, guide, pair, x, options)
    started = time.perf_counter()
    with estimating(model, guide, data, options.seed):
        copies = min(options.gap_copies, count) if has_own_weights(guide, x) else 0
        with Progress(count + copies, "image", quiet=quiet) as progress:

            def advance(images: int) -> None:
                progress.advance(images)
                progress.note("gaps", f"{search.num_samples} samples a step, {num_samples} after", every=10)

            settings: dict[str, Any] = {
                "num_samples": num_samples,
                "search": search,
                "seed": options.seed,
                "progress": advance,
            }
            found = gaps(model, guide, x, **settings)
            own = None
            if copies:
                own = gaps(model, guide, x[:copies], own_weights=True, **settings)
        if options.estimator == "annealed":
            annealed, _ = _annealed(model, guide, x, (), replace(options, sandwich=0), quiet)
            found = found.at_least(annealed, "annealed")
            if own is not None:
                own = own.at_least(
                    bound(annealed.log_px[:copies], annealed.log_px_mc_var[:copies], annealed.num_samples), "annealed"
                )
    summary = {
        **heading(run, config, data, options),
        "observation": observation(pair, x),
        "num_samples": num_samples,
        **({"annealed": asdict(options.annealed)} if options.estimator == "annealed" else {}),
        "search": asdict(search),
        "contexts": gap_parts(found),
        **({} if own is None else {"copies": gap_parts(own), "contexts_of_these": gap_parts(found, copies)}),
        "seconds": time.perf_counter() - started,
    }
    run.write_json("gaps.json", summary)
    return summary


def command(arguments: list[str]) -> None:
    given = cli.parse(
        Command,
        arguments,
        "python -m ppl_gen.evaluate",
        "ELBO, IWAE bounds and log p(x) of a run.",
    )
    from ppl_gen.report.pictures import draw_evaluation

    parallel.join()
    options = given.options
    run, config, model, guide, data = open_fitted(
        given.run, given.named, checkpoint=options.checkpoint, device=options.device
    )
    run.writes = parallel.rank() == 0
    if options.gaps:
        if parallel.size() > 1:
            raise BadInput("--gaps: takes one process")
        found = split_gap(run, config, model, guide, data, options)
        write_report(run)
        print(gap_table(found))
        print(f"written to {run.path / 'gaps.json'}")
        return
    others = other_guides(options, given.named)
    before: dict[str, Any] | None = None
    with suppress(BadInput):  # a damaged one is replaced as well
        before = run.read_json("evaluation.json")
    summary = evaluate(run, config, model, guide, data, options, quiet=not run.writes, others=others)
    parallel.leave()
    if run.writes:
        draw_evaluation(run)
        write_report(run)
        print(table(summary))
        of = "" if before is None else f"{before.get('num_images')} {before.get('split')} images"
        replaced = f", in the place of one of {of}" if of else ""
        print(f"written to {run.path / 'evaluation.json'} and evaluation.nc{replaced}")


if __name__ == "__main__":
    cli.main(command, together=True)
