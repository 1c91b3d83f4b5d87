"""Pairs in the manner of Pyro's examples and tutorials, small, each with its weights by hand: with plain torch, from
the networks and densities alone.

A pair has the statements, plates, marks of enumeration and masks of the example that it is named after. `weigh` draws
from q with a `Draws` and returns log weights [samples, images]; given the values that Pyro has drawn, it scores these.
All are made and run with float64 as torch's default (`double_precision`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.distributions as td
import torch.nn.functional as F
import zuko
from pyro import poutine
from pyro.contrib.cevae import CEVAE
from pyro.contrib.mue.models import FactorMuE
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroSample
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

NUM_IMAGES = 5


@contextmanager
def double_precision() -> Iterator[None]:
    """Context with float64 as torch's default, which some of Pyro's own models use."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Draws:
    """Values of latent sites [samples, images, units], and log q at them.

    :param given: values to score; None to draw.
    """

    def __init__(self, count: int, given: dict[str, Tensor] | None = None):
        self.count, self.given = count, given
        self.log_q = torch.zeros(count, NUM_IMAGES)

    def __call__(self, name: str, q: td.Distribution, mask: Tensor | float = 1.0) -> Tensor:
        """A value of the site, from a distribution with batch shape [images] or [samples, images]."""
        q = q.expand((self.count, NUM_IMAGES))
        value: Tensor = q.sample() if self.given is None else self.given[name]
        self.log_q = self.log_q + mask * q.log_prob(value)
        return value


def normal(loc: Tensor | float, scale: Tensor | float) -> td.Distribution:
    """Independent normals over the last dimension."""
    return td.Independent(td.Normal(loc, scale), 1)


def standard(units: int) -> td.Distribution:
    return normal(torch.zeros(units), torch.ones(units))


def bernoulli(x: Tensor, probs: Tensor) -> Tensor:
    """log p(x) of independent pixels, from the definition."""
    return (x * probs.log() + (1 - x) * (-probs).log1p()).sum(-1)


def binary(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.5))


def two(net: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """A location, and a scale that is not far from 1, from the halves of a network's output."""
    loc, raw = net(torch.cat(inputs, -1)).chunk(2, -1)
    return loc, F.softplus(raw) + 0.5


class Pair(nn.Module):
    """A pair with its data."""

    x: Any
    """The images."""
    arguments: tuple[Any, ...]
    """Arguments after the images."""
    named: dict[str, Any]
    """Arguments by name."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments, self.named = (), {}

    def model(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def weigh(self, draw: Draws) -> Tensor:
        raise NotImplementedError


class VAE(Pair):
    """`examples/vae/vae.py` and the VAE tutorial: images of two dimensions, flattened; sites `latent` and `obs`."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 6), nn.Linear(6, 4)
        self.x = binary(NUM_IMAGES, 2, 3)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            zeros = torch.zeros(x.shape[0], 2, dtype=x.dtype)
            z = pyro.sample("latent", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            probs = torch.sigmoid(self.decoder(z))
            pyro.sample("obs", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=x.reshape(-1, 6))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("latent", dist.Normal(*two(self.encoder, x.reshape(-1, 6))).to_event(1))

    def weigh(self, draw: Draws) -> Tensor:
        x = self.x.flatten(1)
        z = draw("latent", normal(*two(self.encoder, x)))
        return bernoulli(x, self.decoder(z).sigmoid()) + standard(2).log_prob(z) - draw.log_q


class FlowPrior(Pair):
    """The tutorial on a VAE with a flow as its prior, by Zuko."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 6), nn.Linear(6, 4)
        self.prior = zuko.flows.MAF(2, transforms=2, hidden_features=(4,))
        self.x = binary(NUM_IMAGES, 6)

    def model(self, x: Tensor) -> None:
        pyro.module("prior", self.prior)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", ZukoToPyro(self.prior()))
            pyro.sample("x", dist.Bernoulli(self.decoder(z).sigmoid()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(*two(self.encoder, x)).to_event(1))

    def weigh(self, draw: Draws) -> Tensor:
        z = draw("z", normal(*two(self.encoder, self.x)))
        return bernoulli(self.x, self.decoder(z).sigmoid()) + self.prior().log_prob(z) - draw.log_q


class FlowGuide(Pair):
    """The tutorial on a flow as the guide: several measurements of each object in a plate inside that of the objects,
    which are in the second dimension of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = zuko.flows.NSF(3, context=4, transforms=1, hidden_features=(4,))
        self.flow.transform = self.flow.transform.inv
        self.x = torch.randn(NUM_IMAGES, 2, 2)

    @staticmethod
    def covariance(z: Tensor) -> Tensor:
        rho = 0.9 * z[..., 2].tanh()
        one = torch.ones_like(rho)
        return torch.stack([one, rho, rho, one], -1).unflatten(-1, (2, 2))

    def model(self, x: Tensor) -> None:
        x = x.transpose(0, 1)
        with pyro.plate("data", x.shape[1]):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("obs", 2):
                pyro.sample("x", dist.MultivariateNormal(z[..., :2], self.covariance(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("flow", self.flow)
        with pyro.plate("data", len(x)):
            pyro.sample("z", ZukoToPyro(self.flow(x.flatten(1))))

    def weigh(self, draw: Draws) -> Tensor:
        z = draw("z", self.flow(self.x.flatten(1)))
        each = td.MultivariateNormal(z[..., :2], self.covariance(z))
        likelihood = sum(each.log_prob(self.x[:, k]) for k in range(2))
        return likelihood + standard(3).log_prob(z) - draw.log_q


class M2(Pair):
    """`examples/vae/ss_vae_M2.py` without labels: a plate without a size, y sampled."""

    marked = False

    def __init__(self) -> None:
        super().__init__()
        self.encode_y = nn.Linear(6, 3)
        self.encode_z, self.decode = nn.Linear(9, 4), nn.Linear(5, 6)
        self.x = binary(NUM_IMAGES, 6)

    @staticmethod
    def together(*parts: Tensor) -> Tensor:
        """Concatenated, broadcast to each other as enumeration needs it."""
        shape = torch.broadcast_shapes(*(each.shape[:-1] for each in parts))
        return torch.cat([each.expand(*shape, -1) for each in parts], -1)

    def model(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), 2), xs.new_ones(len(xs), 2)).to_event(1))
            ys = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(len(xs), 3) / 3), obs=ys)
            probs = self.decode(self.together(zs, ys)).sigmoid()
            pyro.sample("x", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=xs)

    def sampling(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.encode_y(xs)))
            pyro.sample("z", dist.Normal(*two(self.encode_z, self.together(xs, ys))).to_event(1))

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        return self.sampling(xs, ys)

    def joint(self, y: Tensor, z: Tensor) -> Tensor:
        """log p(x, y, z) of one-hot labels y."""
        probs = self.decode(self.together(z, y)).sigmoid()
        return bernoulli(self.x, probs) - math.log(3) + standard(2).log_prob(z)

    def weigh(self, draw: Draws) -> Tensor:
        y = draw("y", td.OneHotCategorical(logits=self.encode_y(self.x)))
        z = draw("z", normal(*two(self.encode_z, self.together(self.x, y))))
        return self.joint(y, z) - draw.log_q


class M2Labelled(M2):
    """The same with labels."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments = (torch.eye(3)[torch.arange(NUM_IMAGES) % 3],)

    def weigh(self, draw: Draws) -> Tensor:
        z = draw("z", normal(*two(self.encode_z, self.together(self.x, *self.arguments))))
        return self.joint(self.arguments[0], z) - draw.log_q


class M2Enumerated(M2):
    """The same without labels, with y enumerated in the guide."""

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        config_enumerate(self.sampling, "parallel", expand=True)(xs, ys)

    def parts(self, draw: Draws) -> tuple[Tensor, Tensor]:
        """log p(x, y, z_y) - log q(z_y | x, y) and log q(y | x), [values, samples, images]."""
        each, log_y = [], self.encode_y(self.x).log_softmax(-1)
        for k, y in enumerate(torch.eye(3)):
            given = None if draw.given is None else {"z": draw.given["z"][k]}
            one = Draws(draw.count, given)
            z = one("z", normal(*two(self.encode_z, self.together(self.x, y))))
            each.append(self.joint(y, z) - one.log_q)
        return torch.stack(each), log_y.T[:, None].expand(3, draw.count, -1)

    def weigh(self, draw: Draws) -> Tensor:
        return self.parts(draw)[0].logsumexp(0)

    def evidence(self, draw: Draws) -> Tensor:
        """sum_y q(y | x) [log p(x, y, z_y) - log q(y, z_y | x)]."""
        each, log_y = self.parts(draw)
        return (log_y.exp() * (each - log_y)).sum(0)


class Classifier(M2Labelled):
    """The auxiliary pair of `ss_vae_M2.py`: no latent site, and a scale, which weights leave out."""

    def model(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if ys is not None:
                with poutine.scale(scale=46.0):
                    pyro.sample("y_aux", dist.OneHotCategorical(logits=self.encode_y(xs)), obs=ys)

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pass

    def weigh(self, draw: Draws) -> Tensor:
        labels = self.arguments[0].argmax(-1)
        log_y = self.encode_y(self.x).log_softmax(-1)[torch.arange(NUM_IMAGES), labels]
        return log_y.expand(draw.count, -1)


class CVAE(Pair):
    """`examples/cvae`: xs with a quadrant of -1, ys whole; only the missing pixels are observed, and the prior sees xs
    and a guess of a frozen network."""

    def __init__(self) -> None:
        super().__init__()
        self.baseline, self.prior_net = nn.Linear(8, 8), nn.Linear(8, 4)
        self.generation, self.recognition = nn.Linear(2, 8), nn.Linear(8, 4)
        whole = binary(NUM_IMAGES, 2, 4)
        self.x = whole.clone()
        self.x[:, 1:, :2] = -1
        self.arguments = (whole,)

    @staticmethod
    def completed(xs: Tensor, ys: Tensor) -> Tensor:
        return torch.where(xs == -1, ys, xs).flatten(1)

    def prior(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            guess = self.baseline(xs.flatten(1)).sigmoid().view(xs.shape)
        return two(self.prior_net, self.completed(xs, guess))

    def model(self, xs: Tensor, ys: Tensor | None = None) -> Any:
        pyro.module("generation_net", self)
        with pyro.plate("data"):
            zs = pyro.sample("z", dist.Normal(*self.prior(xs)).to_event(1))
            probs = self.generation(zs).sigmoid()
            if ys is None:
                return pyro.deterministic("y", probs.detach())
            probs = probs[(xs == -1).view(-1, 8)].view(len(xs), -1)
            seen = ys[xs == -1].view(len(xs), -1)
            return pyro.sample("y", dist.Bernoulli(probs, validate_args=False).to_event(1), obs=seen)

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            q = self.prior(xs) if ys is None else two(self.recognition, self.completed(xs, ys))
            pyro.sample("z", dist.Normal(*q).to_event(1))

    def weigh(self, draw: Draws) -> Tensor:
        ys = self.arguments[0]
        z = draw("z", normal(*two(self.recognition, self.completed(self.x, ys))))
        probs = self.generation(z).sigmoid()[..., [4, 5]]
        return bernoulli(ys[:, 1, :2], probs) + normal(*self.prior(self.x)).log_prob(z) - draw.log_q


class DeepMarkov(Pair):
    """`examples/dmm.py`: sequences of different lengths, reversed and packed for an RNN, with a mask and their lengths;
    `pyro.markov` in model and guide, and a scale of the latent sites."""

    def __init__(self, flow: bool = False) -> None:
        super().__init__()
        self.emitter, self.transition = nn.Linear(2, 3), nn.Linear(2, 4)
        self.combiner, self.rnn = nn.Linear(5, 4), nn.RNN(3, 3, batch_first=True)
        self.z_0, self.z_q_0 = (nn.Parameter(torch.randn(2)) for _ in range(2))
        self.h_0 = nn.Parameter(torch.randn(1, 1, 3))
        self.flow = affine_autoregressive(2, hidden_dims=[3]) if flow else None
        self.lengths = torch.tensor([4, 3, 3, 2, 1])
        mask = torch.arange(4) < self.lengths[:, None]
        self.x = binary(NUM_IMAGES, 4, 3) * mask.unsqueeze(-1)
        packed = pack_padded_sequence(self.backwards(self.x, self.lengths), self.lengths, batch_first=True)
        self.arguments = (packed, mask, self.lengths)

    @staticmethod
    def backwards(padded: Tensor, lengths: Tensor) -> Tensor:
        result = torch.zeros_like(padded)
        for row, length in enumerate(lengths.tolist()):
            result[row, :length] = padded[row, :length].flip(0)
        return result

    def model(self, x: Tensor, packed: Any, mask: Tensor, lengths: Tensor, annealing: float = 0.5) -> None:
        pyro.module("dmm", self)
        z = self.z_0.expand(len(x), 2)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(1, x.size(1) + 1)):
                seen = mask[:, t - 1 : t]
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(*two(self.transition, z)).mask(seen).to_event(1))
                probs = self.emitter(z).sigmoid()
                pyro.sample(f"obs_x_{t}", dist.Bernoulli(probs).mask(seen).to_event(1), obs=x[:, t - 1])

    def guide(self, x: Tensor, packed: Any, mask: Tensor, lengths: Tensor, annealing: float = 0.5) -> None:
        pyro.module("dmm", self)
        hidden, _ = self.rnn(packed, self.h_0.expand(1, len(x), 3).contiguous())
        hidden = self.backwards(pad_packed_sequence(hidden, batch_first=True)[0], lengths)
        z = self.z_q_0.expand(len(x), 2)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(1, x.size(1) + 1)):
                h = hidden[:, t - 1].expand(*z.shape[:-1], 3)
                q: Any = dist.Normal(*two(self.combiner, z, h))
                with poutine.scale(scale=annealing):
                    if self.flow is None:
                        z = pyro.sample(f"z_{t}", q.mask(mask[:, t - 1 : t]).to_event(1))
                    else:
                        q = dist.TransformedDistribution(q, [self.flow])
                        z = pyro.sample(f"z_{t}", q.mask(mask[:, t - 1]))

    def weigh(self, draw: Draws) -> Tensor:
        w, u = self.rnn.weight_ih_l0, self.rnn.weight_hh_l0
        bias = self.rnn.bias_ih_l0 + self.rnn.bias_hh_l0
        hidden = torch.zeros(NUM_IMAGES, 4, 3)
        for row, length in enumerate(self.lengths.tolist()):
            h = self.h_0[0, 0]
            for t in reversed(range(length)):
                h = torch.tanh(w @ self.x[row, t] + u @ h + bias)
                hidden[row, t] = h
        log_p = torch.zeros(draw.count, NUM_IMAGES)
        before, z = (each.expand(draw.count, NUM_IMAGES, 2) for each in (self.z_0, self.z_q_0))
        for t in range(4):
            mask = (t < self.lengths).double()
            q = normal(*two(self.combiner, z, hidden[:, t].expand(draw.count, -1, -1)))
            if self.flow is not None:
                q = td.TransformedDistribution(q, [self.flow])
            z = draw(f"z_{t + 1}", q, mask)
            likelihood = bernoulli(self.x[:, t], self.emitter(z).sigmoid())
            log_p = log_p + mask * (normal(*two(self.transition, before)).log_prob(z) + likelihood)
            before = z
        return log_p - draw.log_q


class FlowMarkov(DeepMarkov):
    """The same with an autoregressive flow in the guide."""

    def __init__(self) -> None:
        super().__init__(flow=True)


def _grid(where: Tensor, size: int) -> Tensor:
    """Coordinates of a window for `grid_sample`: where = [scale, x, y]."""
    zero = torch.zeros_like(where[:, 0])
    rows = [torch.stack([where[:, 0], zero, where[:, 1]], -1), torch.stack([zero, where[:, 0], where[:, 2]], -1)]
    return F.affine_grid(torch.stack(rows, 1), [len(where), 1, size, size], align_corners=False)


class AIR(Pair):
    """`examples/air` and its tutorial: objects whose number is a latent, with masks that depend on z, baselines, and
    `subsample_size` in the guide's plate."""

    def __init__(self) -> None:
        super().__init__()
        self.decode, self.encode = nn.Linear(2, 9), nn.Linear(9, 4)
        self.rnn, self.predict = nn.LSTMCell(25 + 6, 4), nn.Linear(4, 7)
        self.baseline = nn.Linear(25 + 6, 1)
        self.register_buffer("loc", torch.tensor([3.0, 0.0, 0.0]))
        self.register_buffer("scale", torch.tensor([0.1, 1.0, 1.0]))
        self.x = torch.rand(NUM_IMAGES, 5, 5)
        self.arguments, self.named = (NUM_IMAGES,), {"probability": lambda t: 0.4}

    @staticmethod
    def placed(window: Tensor, where: Tensor) -> Tensor:
        return F.grid_sample(window.view(-1, 1, 3, 3), _grid(where, 5), align_corners=False).view(-1, 5, 5)

    @staticmethod
    def cropped(images: Tensor, where: Tensor) -> Tensor:
        inverse = torch.cat([torch.ones_like(where[:, :1]), -where[:, 1:]], 1) / where[:, :1]
        return F.grid_sample(images.unsqueeze(1), _grid(inverse, 3), align_corners=False).flatten(1)

    def model(self, data: Tensor, batch_size: int, probability: Any = None) -> None:
        pyro.module("decode", self.decode)
        with pyro.plate("data", data.size(0)) as index:
            batch = data[index]
            n = len(batch)
            x, pres = batch.new_zeros(n, 5, 5), batch.new_ones(n, 1)
            for t in range(2):
                pres = pyro.sample(f"z_pres_{t}", dist.Bernoulli(probability(t) * pres).to_event(1))
                prior = dist.Normal(self.loc.expand(n, 3), self.scale.expand(n, 3))
                where = pyro.sample(f"z_where_{t}", prior.mask(pres).to_event(1))
                prior = dist.Normal(batch.new_zeros(n, 2), batch.new_ones(n, 2))
                what = pyro.sample(f"z_what_{t}", prior.mask(pres).to_event(1))
                x = x + self.placed(self.decode(what), where) * pres.view(-1, 1, 1)
            likelihood = dist.Normal(x.view(n, -1), 0.5 + batch.new_zeros(n, 25)).to_event(1)
            pyro.sample("obs", likelihood, obs=batch.view(n, -1))

    def guide(self, data: Tensor, batch_size: int, probability: Any = None) -> None:
        with pyro.plate("data", data.size(0), subsample_size=batch_size) as index:
            batch = data[index]
            n = len(batch)
            pres, where, what = batch.new_ones(n, 1), batch.new_zeros(n, 3), batch.new_zeros(n, 2)
            state = None
            for t in range(2):
                inputs = torch.cat([batch.flatten(1), where, what, pres], 1)
                state = self.rnn(inputs, state)
                share, loc, scale = self.predicted(state[0])
                value = self.baseline(inputs.detach()).squeeze(-1)
                infer = {"baseline": {"baseline_value": value}}
                pres = pyro.sample(f"z_pres_{t}", dist.Bernoulli(share * pres).to_event(1), infer=infer)
                where = pyro.sample(f"z_where_{t}", dist.Normal(loc, scale).mask(pres).to_event(1))
                q = dist.Normal(*two(self.encode, self.cropped(batch, where)))
                what = pyro.sample(f"z_what_{t}", q.mask(pres).to_event(1))

    def predicted(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.predict(hidden)
        return out[:, :1].sigmoid(), self.loc + 0.1 * out[:, 1:4], self.scale * (F.softplus(out[:, 4:]) + 0.5)

    def weigh(self, draw: Draws) -> Tensor:
        flat, count = self.x.repeat(draw.count, 1, 1), draw.count * NUM_IMAGES
        shape = (draw.count, NUM_IMAGES, -1)
        pres, where, what = (torch.full((count, k), k == 1.0) for k in (1, 3, 2))
        x, state, log_p = torch.zeros(count, 5, 5), None, torch.zeros(draw.count, NUM_IMAGES)
        for t in range(2):
            before = pres.view(shape)
            state = self.rnn(torch.cat([flat.flatten(1), where, what, pres], 1), state)
            share, loc, scale = (each.view(shape) for each in self.predicted(state[0]))
            kept = draw(f"z_pres_{t}", td.Independent(td.Bernoulli(share * before), 1))
            there = kept[..., 0]
            log_p = log_p + td.Bernoulli(0.4 * before[..., 0]).log_prob(there)
            placed = draw(f"z_where_{t}", normal(loc, scale), there)
            log_p = log_p + there * normal(self.loc, self.scale).log_prob(placed)
            pres, where = kept.reshape(count, 1), placed.reshape(count, 3)
            q = [each.view(shape) for each in two(self.encode, self.cropped(flat, where))]
            content = draw(f"z_what_{t}", normal(*q), there)
            log_p = log_p + there * standard(2).log_prob(content)
            what = content.reshape(count, 2)
            x = x + self.placed(self.decode(what), where) * pres.view(-1, 1, 1)
        return log_p + normal(x.flatten(1).view(shape), 0.5).log_prob(self.x.flatten(1)) - draw.log_q


class ScANVI(Pair):
    """`examples/scanvi` with labels: counts, batch normalization, a scale, a loss of the classifier in the guide."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6))
        self.classifier, self.encode = nn.Linear(2, 3), nn.Linear(5, 4)
        self.middle, self.last = nn.Linear(5, 4), nn.Linear(2, 8)
        self.x = torch.poisson(torch.full((NUM_IMAGES, 4), 2.0))
        self.arguments = (torch.eye(3)[torch.arange(NUM_IMAGES) % 3],)
        for _ in range(3):
            self.first(self.x.log1p())  # running statistics

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return two(self.first, x.log1p())

    def counts(self, z: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of zero, and of the negative binomial."""
        gate, rate = self.last(z).chunk(2, -1)
        return gate, (size * rate.softmax(-1) + 5e-3).log() - math.log(3.0)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("scanvi", self)
        theta = pyro.param("inverse_dispersion", 3.0 * x.new_ones(4), constraint=dist.constraints.positive)
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.01):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(2)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(3)), obs=y)
            z2 = pyro.sample("z2", dist.Normal(*two(self.middle, M2.together(z1, y))).to_event(1))
            size = pyro.sample("l", dist.LogNormal(1.0, 0.5 * x.new_ones(1)).to_event(1))
            gate, logits = self.counts(z2, size)
            q = dist.ZeroInflatedNegativeBinomial(gate_logits=gate, total_count=theta, logits=logits)
            pyro.sample("x", q.to_event(1), obs=x)

    def sampling(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.01):
            loc, scale = self.encoded(x)
            pyro.sample("l", dist.LogNormal(loc[..., 2:], scale[..., 2:]).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(loc[..., :2], scale[..., :2]).to_event(1))
            label = dist.OneHotCategorical(logits=self.classifier(z2))
            if y is None:
                y = pyro.sample("y", label)
            else:
                pyro.factor("classification_loss", -40.0 * label.log_prob(y), has_rsample=False)
            pyro.sample("z1", dist.Normal(*two(self.encode, M2.together(z2, y))).to_event(1))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        self.sampling(x, y)

    def joint(self, z1: Tensor, y: Tensor, z2: Tensor, size: Tensor) -> Tensor:
        gate, logits = self.counts(z2, size)
        counts = td.NegativeBinomial(torch.tensor(3.0), logits=logits)
        some, none = F.logsigmoid(-gate), F.logsigmoid(gate)
        zero = torch.logaddexp(none, some + counts.log_prob(0 * self.x))
        x = torch.where(self.x > 0, some + counts.log_prob(self.x), zero)
        prior = standard(2).log_prob(z1) - math.log(3) + normal(*two(self.middle, M2.together(z1, y))).log_prob(z2)
        log_size = size[..., 0].log()
        return x.sum(-1) + prior + td.Normal(1.0, 0.5).log_prob(log_size) - log_size

    def drawn(self, draw: Draws) -> tuple[Tensor, Tensor]:
        loc, scale = self.encoded(self.x)
        size = draw("l", td.Independent(td.LogNormal(loc[:, 2:], scale[:, 2:]), 1))
        return size, draw("z2", normal(loc[:, :2], scale[:, :2]))

    def weigh(self, draw: Draws) -> Tensor:
        size, z2 = self.drawn(draw)
        y = self.arguments[0]
        z1 = draw("z1", normal(*two(self.encode, M2.together(z2, y))))
        return self.joint(z1, y, z2, size) - draw.log_q


class ScANVISampled(ScANVI):
    """The same without labels."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments = ()

    def weigh(self, draw: Draws) -> Tensor:
        size, z2 = self.drawn(draw)
        y = draw("y", td.OneHotCategorical(logits=self.classifier(z2)))
        z1 = draw("z1", normal(*two(self.encode, M2.together(z2, y))))
        return self.joint(z1, y, z2, size) - draw.log_q


class ScANVIEnumerated(ScANVISampled):
    """The same with y enumerated in the guide, as in the example's training."""

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        config_enumerate(self.sampling, "parallel", expand=True)(x, y)

    def weigh(self, draw: Draws) -> Tensor:
        each = []
        for k, y in enumerate(torch.eye(3)):
            one = Draws(draw.count, None if draw.given is None else {n: v[k] for n, v in draw.given.items()})
            size, z2 = self.drawn(one)
            z1 = one("z1", normal(*two(self.encode, M2.together(z2, y))))
            each.append(self.joint(z1, y, z2, size) - one.log_q)
        return torch.stack(each).logsumexp(0)


class ProdLDA(Pair):
    """The tutorial on topic models: a multinomial of documents of different lengths, dropout, batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.3), nn.BatchNorm1d(4, affine=False))
        self.decoder = nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 6, bias=False), nn.BatchNorm1d(6, affine=False))
        self.x = torch.poisson(torch.full((NUM_IMAGES, 6), 1.5))

    def encoded(self, docs: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_variance = self.encoder(docs).chunk(2, -1)
        return loc.tanh(), (0.5 * log_variance.tanh()).exp()

    def model(self, docs: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("documents", docs.shape[0]):
            zeros = docs.new_zeros(docs.shape[0], 2)
            logtheta = pyro.sample("logtheta", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            words = F.softmax(self.decoder(F.softmax(logtheta, -1)), dim=1)
            pyro.sample("obs", dist.Multinomial(int(docs.sum(-1).max()), words), obs=docs)

    def guide(self, docs: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            pyro.sample("logtheta", dist.Normal(*self.encoded(docs)).to_event(1))

    def weigh(self, draw: Draws) -> Tensor:
        z = draw("logtheta", normal(*self.encoded(self.x)))
        rows = self.decoder(z.softmax(-1).reshape(-1, 2)).log_softmax(-1).view(draw.count, NUM_IMAGES, 6)
        ways = (self.x.sum(-1) + 1).lgamma() - (self.x + 1).lgamma().sum(-1)
        return ways + (self.x * rows).sum(-1) + standard(2).log_prob(z) - draw.log_q


class CausalEffect(Pair):
    """`CEVAE` of Pyro's package: a plate with `subsample`, treatment and outcome by name, auxiliary observed sites."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = CEVAE(3, "normal", latent_dim=2, hidden_dim=4, num_layers=2)
        with torch.no_grad():  # a guide as wide as the posterior
            for net in (self.pair.guide.z0_nn, self.pair.guide.z1_nn):
                net.fc[-1].bias[2:] += 1
        self.x = torch.randn(NUM_IMAGES, 3)
        self.named = {"t": binary(NUM_IMAGES), "y": torch.randn(NUM_IMAGES)}

    def model(self, *args: Any, **kwargs: Any) -> Any:
        return self.pair.model(*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        return self.pair.guide(*args, **kwargs)

    def weigh(self, draw: Draws) -> Tensor:
        p, q, (t, y) = self.pair.model, self.pair.guide, self.named.values()
        hidden = q.z_nn(torch.cat([y.unsqueeze(-1), self.x], -1))
        treated = t.bool().unsqueeze(-1)
        arms = [torch.where(treated, *each) for each in zip(q.z1_nn(hidden), q.z0_nn(hidden), strict=True)]
        z = draw("z", normal(*arms))
        log_p = standard(2).log_prob(z) + normal(*p.x_nn(z)).log_prob(self.x)
        log_p = log_p + t * F.logsigmoid(p.t_nn(z)[0]) + (1 - t) * F.logsigmoid(-p.t_nn(z)[0])
        outcome = [torch.where(t.bool(), *each) for each in zip(p.y1_nn(z), p.y0_nn(z), strict=True)]
        return log_p + td.Normal(*outcome).log_prob(y) - draw.log_q


def with_globals(model: Any, **values: Tensor) -> Any:
    """A model given its global latents, without their densities."""
    return poutine.block(poutine.condition(model, values), hide=list(values))


class GaussianMixture(Pair):
    """The tutorial on mixtures, given weights, scale and locations: assignments are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.randn(NUM_IMAGES) * 5
        self.weights, self.locs = (torch.tensor(each) for each in ([0.3, 0.7], [-3.0, 4.0]))
        scale = torch.tensor(1.5)
        self.given = with_globals(self.whole, weights=self.weights, scale=scale, locs=self.locs)

    @config_enumerate
    def whole(self, data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    def model(self, data: Tensor) -> None:
        self.given(data)

    def guide(self, data: Tensor) -> None:
        pass

    def weigh(self, draw: Draws) -> Tensor:
        square = ((self.x[:, None] - self.locs) / 1.5).square()
        density = (self.weights * (-0.5 * square).exp()).sum(1) / (1.5 * math.sqrt(2 * math.pi))
        return density.log().expand(draw.count, -1)


class HiddenMarkov(Pair):
    """`examples/hmm.py`, its model 1, given its global latents: sequences in a plate left of that of the tones, masks
    of different lengths, `pyro.markov`, states enumerated and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths = torch.tensor([3, 4, 2, 1, 4])
        self.x = binary(NUM_IMAGES, 4, 3)
        self.arguments = (self.lengths, SimpleNamespace(hidden_dim=2))
        self.move = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        self.tones = torch.rand(2, 3)
        self.given = with_globals(self.whole, probs_x=self.move, probs_y=self.tones)

    def whole(self, sequences: Tensor, lengths: Tensor, args: Any, include_prior: bool = True) -> None:
        _, steps, tones = sequences.shape
        with poutine.mask(mask=include_prior):
            probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(args.hidden_dim) + 0.1).to_event(1))
            probs_y = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([args.hidden_dim, tones]).to_event(2))
        tones_plate = pyro.plate("tones", tones, dim=-1)
        with pyro.plate("sequences", len(sequences), dim=-2) as batch:
            x: Any = 0
            for t in pyro.markov(range(steps)):
                with poutine.mask(mask=(t < lengths[batch]).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                    with tones_plate:
                        sound = dist.Bernoulli(probs_y[x.squeeze(-1)])
                        pyro.sample(f"y_{t}", sound, obs=sequences[batch, t])

    def model(self, *args: Any) -> None:
        self.given(*args)

    def guide(self, *args: Any) -> None:
        pass

    def weigh(self, draw: Draws) -> Tensor:
        """By the forward algorithm in probabilities, one sequence after the other."""
        found = []
        for x, length in zip(self.x, self.lengths.tolist(), strict=True):
            state = torch.tensor([1.0, 0.0])
            for t in range(length):
                state = (state @ self.move) * (self.tones * x[t] + (1 - self.tones) * (1 - x[t])).prod(1)
            found.append(state.sum().log())
        return torch.stack(found).expand(draw.count, -1)


class SecondOrderMarkov(HiddenMarkov):
    """Its model 6: parameters in the store, a state that depends on two before it, `history=2`."""

    def __init__(self) -> None:
        super().__init__()
        self.moves = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.1, 0.9]]])

    def model(self, sequences: Tensor, lengths: Tensor, args: Any) -> None:
        moves = pyro.param("moves", self.moves, constraint=dist.constraints.simplex)
        tones = pyro.param("tones_of_states", self.tones, constraint=dist.constraints.unit_interval)
        tones_plate = pyro.plate("tones", sequences.shape[2], dim=-1)
        with pyro.plate("sequences", len(sequences), dim=-2) as batch:
            x = before = torch.tensor(0)
            for t in pyro.markov(range(sequences.shape[1]), history=2):
                with poutine.mask(mask=(t < lengths[batch]).unsqueeze(-1)):
                    state = dist.Categorical(moves[before, x])
                    before, x = x, pyro.sample(f"x_{t}", state, infer={"enumerate": "parallel"})
                    with tones_plate:
                        pyro.sample(f"y_{t}", dist.Bernoulli(tones[x.squeeze(-1)]), obs=sequences[batch, t])

    def weigh(self, draw: Draws) -> Tensor:
        """By a sum over all paths."""
        found = []
        for x, length in zip(self.x, self.lengths.tolist(), strict=True):
            total = 0.0
            for path in range(2**length):
                states = [0, 0, *(path >> t & 1 for t in range(length))]
                each = 1.0
                for t in range(length):
                    before, now, after = states[t : t + 3]
                    sound = self.tones[after] * x[t] + (1 - self.tones[after]) * (1 - x[t])
                    each = each * float(self.moves[before, now, after]) * float(sound.prod())
                total += each
            found.append(math.log(total))
        return torch.tensor(found).expand(draw.count, -1)


class MixedMarkov(Pair):
    """`examples/mixed_hmm`: groups of individuals, each a chain with zero-inflated steps (`MaskedMixture` with a
    `Delta`); a group's effect, which all its individuals share, is enumerated."""

    def __init__(self) -> None:
        super().__init__()
        self.effect = torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.6, 0.4]]])
        self.x = torch.rand(NUM_IMAGES, 2, 3) + 0.1  # [groups, individuals, steps]
        self.x[0, 1, 1] = self.x[3, 0, 0] = 0.0

    @config_enumerate
    def model(self, x: Tensor) -> None:
        steps = x.movedim(0, 1)
        share = pyro.param("share", torch.tensor([0.3, 0.7]), constraint=dist.constraints.simplex)
        with pyro.plate("group", len(x), dim=-1):
            effect = pyro.sample("e_g", dist.Categorical(share))
            with pyro.plate("individual", x.shape[1], dim=-2):
                state = torch.tensor(0)
                for t in pyro.markov(range(x.shape[2])):
                    move = Vindex(self.effect)[..., effect, state, :]
                    state = pyro.sample(f"y_{t}", dist.Categorical(move))
                    zero = steps[..., t] == 0
                    chance = Vindex(torch.tensor([0.2, 0.4]))[..., state]
                    pyro.sample(f"step_zi_{t}", dist.Bernoulli(chance), obs=zero.double())
                    some = dist.Gamma(2.0, Vindex(torch.tensor([1.0, 4.0]))[..., state])
                    step = dist.MaskedMixture(zero, some, dist.Delta(torch.tensor(0.0)))
                    pyro.sample(f"step_{t}", step, obs=steps[..., t])

    def guide(self, x: Tensor) -> None:
        pass

    def weigh(self, draw: Draws) -> Tensor:
        rate, zero = torch.tensor([1.0, 4.0]), torch.tensor([0.2, 0.4])
        found = []
        for group in self.x:
            total = torch.zeros(())
            for chance, move in zip((0.3, 0.7), self.effect, strict=True):
                product = torch.tensor(chance)
                for individual in group:
                    state = torch.tensor([1.0, 0.0])
                    for step in individual:
                        seen = zero if step == 0 else (1 - zero) * rate**2 * step * (-rate * step).exp()
                        state = (state @ move) * seen
                    product = product * state.sum()
                total = total + product
            found.append(total.log())
        return torch.stack(found).expand(draw.count, -1)


class CaptureRecapture(Pair):
    """`examples/capture_recapture`, its first model, given survival and recapture: nothing counts before the first
    capture."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 1, 0]])
        self.given = with_globals(self.whole, phi=torch.tensor(0.7), rho=torch.tensor(0.4))

    def whole(self, history: Tensor) -> None:
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", len(history), dim=-1):
            alive, seen = torch.ones(len(history)), torch.zeros(len(history), dtype=torch.bool)
            for t in pyro.markov(range(history.shape[1])):
                with poutine.mask(mask=seen):
                    survival = torch.where(seen, phi * alive, torch.ones_like(phi))
                    alive = pyro.sample(f"z_{t}", dist.Bernoulli(survival), infer={"enumerate": "parallel"})
                    pyro.sample(f"y_{t}", dist.Bernoulli(rho * alive), obs=history[:, t])
                seen = seen | history[:, t].bool()

    def model(self, history: Tensor) -> None:
        self.given(history)

    def guide(self, history: Tensor) -> None:
        pass

    def weigh(self, draw: Draws) -> Tensor:
        found = []
        for history in self.x.tolist():
            alive, dead = 1.0, 0.0
            for caught in history[history.index(1.0) + 1 :]:
                alive, dead = 0.7 * alive, dead + 0.3 * alive
                alive, dead = (0.4 * alive, 0.0) if caught else (0.6 * alive, dead)
            found.append(math.log(alive + dead))
        return torch.tensor(found).expand(draw.count, -1)


class Mutational(Pair):
    """`FactorMuE` of Pyro's package, given its global latents: sequences by a hidden Markov model, whose distribution
    says one step and takes any number; two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = FactorMuE(3, 3, 2, latent_seq_length=2, inverse_temp_prior=1.0)
        with torch.no_grad():  # a guide as wide as the posterior
            self.pair.encoder.f1_sd.bias += 1
            self.pair.encoder.f1_mn.weight *= 0.3
        self.x = F.one_hot(torch.randint(0, 3, (NUM_IMAGES, 3)), 3).double()
        self.x[0, 2] = 0  # a shorter sequence
        self.arguments = (torch.tensor(3.0), torch.tensor(0.5))
        sites = poutine.trace(self.pair.model).get_trace(self.x, *self.arguments).nodes
        names = ("W", "B", "insert", "delete", "inverse_temp", "substitute")
        self.values = {name: sites[name]["value"].detach() for name in names}

    def model(self, *args: Any) -> None:
        with_globals(self.pair.model, **self.values)(*args)

    def guide(self, *args: Any) -> None:
        poutine.block(self.pair.guide, hide=list(self.values))(*args)

    def weigh(self, draw: Draws) -> Tensor:
        v, pair = self.values, self.pair
        loc, scale = pair.encoder.f1_mn(self.x.flatten(1)), F.softplus(pair.encoder.f1_sd(self.x.flatten(1)))
        z = draw("latent", normal(loc, scale))
        decoded = pair.decoder(z.reshape(-1, 2), v["W"], v["B"], v["inverse_temp"])
        logits = [decoded[name] for name in ("precursor_seq_logits", "insert_seq_logits")]
        logits += [v[name].log_softmax(-1) for name in ("insert", "delete")]
        start, move, emit = (each.softmax(-1) for each in pair.statearrange(*logits, v["substitute"]))
        seen = self.x.repeat(draw.count, 1, 1)
        state: Tensor = start
        for t in range(3):
            symbol = torch.where(seen[:, t].any(-1)[:, None], (emit @ seen[:, t].unsqueeze(-1)).squeeze(-1), 1.0)
            state = (state if t == 0 else (state.unsqueeze(-2) @ move).squeeze(-2)) * symbol
        return state.sum(-1).log().view(draw.count, -1) + standard(2).log_prob(z) - draw.log_q


class Local(Pair):
    """The tutorial on modules: a `PyroModule` with a `PyroSample` that the plate makes local."""

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroSample(dist.Normal(torch.tensor(0.0), 1.0))

        def forward(self, data: Tensor) -> None:
            with pyro.plate("data", len(data)):
                pyro.sample("obs", dist.Normal(self.loc, 1), obs=data)

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.x = self.Model(), torch.randn(NUM_IMAGES)

    def model(self, data: Tensor) -> None:
        self.inner(data)

    def guide(self, data: Tensor) -> None:
        with pyro.plate("data", len(data)):
            pyro.sample("loc", dist.Normal(0.4 * data, 1.0))

    def weigh(self, draw: Draws) -> Tensor:
        z = draw("loc", normal(0.4 * self.x[:, None], torch.ones(1)))
        return td.Normal(z[..., 0], 1.0).log_prob(self.x) + standard(1).log_prob(z) - draw.log_q


PAIRS: dict[str, type[Pair]] = {
    each.__name__: each
    for each in (
        *(VAE, FlowPrior, FlowGuide, M2, M2Labelled, M2Enumerated, Classifier, CVAE, DeepMarkov, FlowMarkov, AIR),
        *(ScANVI, ScANVISampled, ScANVIEnumerated, ProdLDA, CausalEffect, GaussianMixture, HiddenMarkov),
        *(SecondOrderMarkov, MixedMarkov, CaptureRecapture, Mutational, Local),
    )
}
