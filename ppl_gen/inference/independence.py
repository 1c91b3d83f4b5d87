"""Checks that images, and samples, are independent: log-densities of an image do not depend on the rest of the batch.

Batch normalization, and an event that extends across the plate, make one image change the density of another. Such a
pair has no importance weights of single images.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, describe
from ppl_gen.core.seeds import MANY_DRAWS, seed_torch, with_draws
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.densities import ABSOLUTE, RELATIVE, Site, alike, samples_first
from ppl_gen.inference.double import as_double, in_double
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.inference.tracing import Traces, conditioned, replayed

_BATCH_SIZE = 16  # images, as many as importance sampling holds at a time
_NOISE = 1009  # numbers that are drawn for a parameter, and repeated; a prime
_CALLS, _COPIES = 16, 4  # draws of noise that images may share, and copies of each image

# Images ------------------------------------------------------------------------------------------------------------


def check_independence(pair: Pair, batch: Batch) -> Pair:
    """Refuse a pair in which one image changes the log-densities of another. A batch is scored, and then some of its
    images alone, at the same z. Returns the pair, with what is known of noise beside z, and of the value that the model
    observes.

    If the pair has noise besides z, an image alone would get other noise; and if the guide cannot score a z that it has
    not drawn, an image alone would get another z. In both cases the image is scored again in its place of a batch of
    the same size, where it has the same random numbers, among other images.

    :raises BadInput: for such a pair, and for a pair whose density of the same z differs between two calls.
    """
    rows = torch.linspace(0, len(batch.x) - 1, max(min(len(batch.x), _BATCH_SIZE), 3), device=batch.x.device)
    batch = take(rows := rows.round().long(), *batch)
    everyone = torch.arange(len(rows), device=rows.device)
    scorer, together, values = _scored(pair, batch, everyone)
    draws = _check_repeated(scorer, everyone, together)
    seed_of_other = _other_noise(scorer, everyone, together, values) if draws else None
    noisy = scorer.sites is None or seed_of_other is not None
    for image in everyone[:: max(1, len(everyone) // 3)][:3]:
        if noisy:
            apart, where, how = scorer(_other_batch(everyone, image))[0], image, "in another batch"
        else:
            apart, where, how = _alone(scorer, image), everyone[0], "alone"
        for what, one, many in zip(_WHAT, _densities(apart), _densities(together), strict=True):
            if not alike(one[0, where], many[0, image]) and (noisy or not _differ_by_rounding(scorer, image)):
                raise _dependent(pair, what, int(rows[image]), one[0, where], how, many[0, image], len(rows))
    if scorer.sites is not None and seed_of_other is not None:
        _check_shared_noise(scorer, everyone.repeat(_COPIES), seed_of_other)
    observed = dict(zip(pair.observed, values, strict=True))[pair.image]
    return replace(pair, noisy=noisy, observes_x=_is_x(observed, batch.x))


def _is_x(value: Tensor, x: Tensor) -> bool:
    """False if a value has as many numbers as images x, but others, by more than a hundredth of the range of x. The
    plate of images may be in any dimension."""
    if value.numel() != x.numel():
        return True
    value, x = value.double(), x.double().flatten()
    for dim in range(value.dim()):
        one = value.movedim(dim, 0).flatten()
        known = ~(one.isnan() | x.isnan())  # a missing pixel has no value
        if not bool(known.any()):
            return True
        span = float(x[known].max() - x[known].min()) or 1.0
        if bool((one - x)[known].abs().max() <= 0.01 * span):
            return True
    return False


def _scored(pair: Pair, batch: Batch, everyone: Tensor) -> tuple["_Scorer", Terms, list[Tensor]]:
    """A scorer of a batch, at values of z that are drawn for it, and what it returns for all images. If the guide
    cannot score a z that it has not drawn, as a flow without inverse cannot, z is drawn at every call."""
    seed = int(torch.randint(2**31, ()))
    traces = replayed(pair.guide, pair.joint, batch)
    scorer = _Scorer(pair, batch, {name: pair.proposal(traces).nodes[name] for name in pair.latent}, seed)
    try:
        return scorer, *scorer(everyone)
    except Exception:
        scorer = replace(scorer, sites=None)
        return scorer, *scorer(everyone)


def _check_repeated(scorer: "_Scorer", everyone: Tensor, together: Terms) -> bool:
    """Refuse a pair whose density of the same z differs between two calls with the same random numbers of torch.
    Returns True if a call draws random numbers.

    :param together: what the scorer has returned for all images.
    """
    before = _states_elsewhere()
    (again, _), draws = with_draws(lambda: scorer(everyone), everyone.is_cuda, scorer.seed)
    repeated = [again]
    if _states_elsewhere() != before:
        repeated += [scorer(everyone)[0] for _ in range(MANY_DRAWS)]
    if not all(_all_alike(together, again) for again in repeated):
        raise BadInput(
            f"{scorer.pair.model_name} and {scorer.pair.guide_name} score the same z twice with the same random "
            "numbers of torch, but get different densities: keep no state between calls, and draw all noise with torch"
        )
    return draws


def _states_elsewhere() -> tuple[Any, ...]:
    """The states of the generators of Python and of NumPy."""
    state: Any = np.random.get_state(legacy=False)
    return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"], state["gauss"]


def _other_noise(scorer: "_Scorer", everyone: Tensor, together: Terms, values: list[Tensor]) -> int | None:
    """A seed of noise beside z with which the densities of the same z are other ones; None without any.

    :param together: the terms with the scorer's own seed.
    :param values: the values of the observed sites.
    """
    for seed in range(scorer.seed + 1, scorer.seed + 1 + MANY_DRAWS):
        other, others = replace(scorer, seed=seed)(everyone)
        if not all(bool(((one == two) | one.isnan()).all()) for one, two in zip(values, others, strict=True)):
            raise BadInput(
                f"{scorer.pair.model_name} observes different values at every call, such as torch.bernoulli(x): draw "
                "them once and pass them as x"
            )
        if not _all_alike(together, other):
            return seed
    return None


def _dependent(
    pair: Pair, what: str, image: int, one: Tensor, how: str, many: Tensor, count: int, first: int = 0
) -> BadInput:
    """The error about an image whose density is another one among other images."""
    owner = pair.guide_name if what == "log q(z | x)" else pair.model_name
    return BadInput(
        f"{owner}: images change each other's densities: {what} of image {first + image} is {float(one):.6g} {how} and "
        f"{float(many):.6g} among {count}; let no statistic or event, such as of batch normalization or .to_event(n), "
        f"reach across the plate '{pair.plate.name}'"
    )


def check_halves(pair: Pair, first: int, batch: Batch, traces: Traces) -> None:
    """Refuse a pair in which an image of a batch changes the densities of others, such as the brightest one: the two
    halves of the batch are scored apart, at the same z. A pair with noise besides z, or with a guide that cannot score
    a z that it has not drawn, is left to `check_independence`.

    :param first: number of the first image, for messages.
    :param traces: traces of the batch.
    """
    everyone = torch.arange(len(batch.x), device=batch.x.device)
    if len(everyone) < 2 or pair.enumerated or pair.noisy:
        return
    scorer = _Scorer(pair, batch, {name: pair.proposal(traces).nodes[name] for name in pair.latent}, 0)
    try:
        (together, _), draws = with_draws(lambda: scorer(everyone), everyone.is_cuda)
        noisy = draws and not _all_alike(together, replace(scorer, seed=1)(everyone)[0])
    except Exception:  # such as a flow without inverse
        return
    if noisy:
        raise BadInput(
            f"{pair.model_name} or {pair.guide_name} draws noise beside z for some images alone, which others do not "
            "show: draw it for all images, as torch.randn_like(z) does"
        )
    for rows in everyone.tensor_split(2):
        apart, _ = scorer(rows)
        for what, one, many in zip(_WHAT, _densities(apart), _densities(together), strict=True):
            same = torch.isclose(one[0], many[0, rows], rtol=RELATIVE, atol=ABSOLUTE)
            differ = ~(same | one[0].isnan() | many[0, rows].isnan())  # NaN is told where it counts
            for number in differ.nonzero().flatten().tolist()[:1]:
                image = rows[number]
                if not _differ_by_rounding(scorer, image):
                    how = f"among {len(rows)}"
                    raise _dependent(pair, what, int(image), one[0, number], how, many[0, image], len(everyone), first)


def _check_shared_noise(scorer: "_Scorer", copies: Tensor, seed: int) -> None:
    """Refuse noise beside z that all images of a call share, such as that of a weight: samples would share it too, and
    no error of an estimate counts it. Copies of an image then differ from call to call, and are equal in each call.

    :param copies: the rows of all images, `_COPIES` times.
    :param seed: a seed of other noise than the scorer's own.
    """
    pair, seeds = scorer.pair, [scorer.seed, *range(seed, seed + _CALLS)]
    calls = [_densities(replace(scorer, seed=each)(copies)[0]) for each in seeds]
    for what, *found in zip(_WHAT, *calls, strict=True):
        tables = [each.reshape(_COPIES, -1) for each in found]
        first = tables[0][0]
        other = next((each[0] for each in tables if not alike(each[0], first)), None)
        if other is not None and all(alike(each, each[:1].expand_as(each)) for each in tables):
            image = int((first - other).abs().nan_to_num(0.0).argmax())
            owner = pair.guide_name if what == "log q(z | x)" else pair.model_name
            raise BadInput(
                f"{owner} draws noise beside z once for all images, which samples would share: {what} of one image is "
                f"{float(first[image]):.6g} at one call and {float(other[image]):.6g} at another; draw it for each "
                "image, as torch.randn_like(z) does"
            )


@dataclass(frozen=True)
class _Scorer:
    """A function from rows of a batch to their log-densities, at values of z that were drawn for the whole batch."""

    pair: Pair
    batch: Batch
    sites: dict[str, Site] | None
    """Latent sites with the values of the whole batch; None to draw them anew."""
    seed: int
    """Seed of the noise besides z."""

    def __call__(self, rows: Tensor) -> tuple[Terms, list[Tensor]]:
        """The terms of one sample, and the values of the observed sites."""
        seed_torch(self.seed)
        pair, batch = self.pair, take(rows, *self.batch)
        if self.sites is None:
            traces = replayed(pair.guide, pair.joint, batch)
        else:
            values = {name: self._of_rows(site, rows) for name, site in self.sites.items()}
            traces = conditioned(pair.guide, pair.joint, values, batch)
        return pair.terms_of(traces, (1, len(rows))), [traces.model.nodes[name]["value"] for name in pair.observed]

    def _of_rows(self, site: Site, rows: Tensor) -> Tensor:
        """The value of a site for some rows."""
        value: Tensor = site["value"]
        dim = value.dim() - site["fn"].event_dim + self.pair.plate.dim
        return value if dim < 0 or value.shape[dim] == 1 else value.index_select(dim, rows)


def _other_batch(everyone: Tensor, image: Tensor) -> Tensor:
    """Rows of a batch of the same size with one image in its own place and all other images moved."""
    rows = (everyone.flip(0) if len(everyone) % 2 == 0 else everyone.roll(1)).clone()
    rows[image] = image
    return rows


def _differ_by_rounding(scorer: _Scorer, image: Tensor) -> bool:
    """True if the densities of an image, alone and among others, are the same in float64. A batch of another size is
    computed in another order, and with a scale of 1e-9 the rounding of a mean is many nats."""
    batch = Batch(*(as_double(each) for each in scorer.batch))
    sites = {name: {**site, "value": as_double(site["value"])} for name, site in (scorer.sites or {}).items()}
    double = replace(scorer, batch=batch, sites=sites)
    try:
        with in_double(scorer.pair.model, scorer.pair.guide):
            many, _ = double(torch.arange(len(batch.x), device=batch.x.device))
            alone, _ = double(image.reshape(1))
    except Exception:  # a function with tensors of its own in float32
        return False
    return all(alike(one[0, 0], each[0, image]) for one, each in zip(_densities(alone), _densities(many), strict=True))


def _alone(scorer: _Scorer, image: Tensor) -> Terms:
    """The terms of one image without the others."""
    try:
        return scorer(image.reshape(1))[0]
    except Exception as error:
        hint = "sites must be the same for every batch: loop over all steps of x, and mask those that a sequence lacks"
        hint = f"; {hint}" if isinstance(error, KeyError) else ""
        names = f"{scorer.pair.model_name} and {scorer.pair.guide_name}"
        raise BadInput(f"{names} fail on one image alone: {describe(error)}{hint}") from error


_WHAT = ("log p(x | z)", "log p(z)", "log q(z | x)")


def _densities(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """The log-densities [samples, images] in the order of `_WHAT`."""
    return terms.log_likelihood, terms.log_prior, terms.log_guide


def _all_alike(one: Terms, other: Terms) -> bool:
    """True if all log-densities of two terms are equal up to rounding."""
    return all(map(alike, _densities(one), _densities(other)))


# Samples -----------------------------------------------------------------------------------------------------------


def can_vectorize_samples(pair: Pair, batch: Batch) -> bool:
    """True if samples can be drawn together under an outer plate: they are independent, and no density changes.

    A function that reshapes by the batch size, or that has fixed shapes in it, fails under an outer plate or returns
    wrong values. Therefore two samples of three images are drawn together, and each is scored again alone: at the
    present parameters, and at others nearby, where a branch that starts at zero shows. Noise beside z may have the
    shape of the images, which samples would share.
    """
    if pair.noisy or not _alike_together(pair, batch, rtol=1e-4, atol=1e-3):
        return False
    with moved(pair.modules):
        return _alike_together(pair, batch, rtol=1e-2, atol=1e-2, failing=True)


@contextmanager
def moved(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which the parameters of modules are others nearby: each has noise added, of a tenth of their size, or
    a tenth where they are small. Graphs that use the parameters stay valid."""
    parameters = {id(each): each for module in modules for each in module.parameters(recurse=False)}
    dense = (each for each in parameters.values() if each.layout is torch.strided and each.is_floating_point())
    before = [(each, each.data) for each in dense]
    try:
        for each, data in before:
            noise = torch.randn(min(data.numel(), _NOISE), dtype=data.dtype, device=data.device)
            noise = noise.repeat(-(-data.numel() // _NOISE))[: data.numel()].reshape(data.shape)
            each.data = data.add(noise, alpha=0.1 * (float(data.square().mean().sqrt()) + 0.1))
        yield
    finally:
        for each, data in before:
            each.data = data


def _alike_together(pair: Pair, batch: Batch, rtol: float, atol: float, failing: bool = False) -> bool:
    """True if samples have the same densities together and alone.

    :param failing: what is returned if the functions fail.
    """
    batch = take(torch.arange(3, device=batch.x.device) % len(batch.x), *batch)
    try:
        traces = replayed(*replace(pair, vectorized=True).for_samples(2, batch))
        together = pair.terms_of(traces, (2, 3))
        sites = {name: pair.proposal(traces).nodes[name] for name in pair.latent}
        for sample in range(2):
            values = {name: samples_first(site, pair.sample_dim)[sample] for name, site in sites.items()}
            alone = pair.terms_of(conditioned(pair.guide, pair.joint, values, batch), (1, 3))
            for one, many in zip(_densities(alone), _densities(together), strict=True):
                if not torch.allclose(one[0], many[sample], rtol=rtol, atol=atol, equal_nan=True):
                    return False
    except Exception:  # a function that does not broadcast may raise anything
        return failing
    return True
