"""Further arguments of model and guide: dictionaries, tuples, lists, packed sequences with masks and lengths."""

import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.arguments import Batch, as_arguments, take
from ppl_gen.inference.pair import Pair

F64 = torch.float64
SIGMAS = 5
"""Standard errors; a false alarm once in 1.7 million numbers."""
STEPS = 5
Both = namedtuple("Both", ["scale", "shift"])
X = torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=F64)
SCALE, SHIFT = torch.linspace(0.5, 2.0, 7, dtype=F64), torch.linspace(-1.0, 1.0, 7, dtype=F64)


def nobody(x: Tensor, *args: Any) -> None:
    """A model that does not ask for row numbers."""


WAYS: dict[str, tuple[Any, Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "dictionary": ({"scale": SCALE, "shift": SHIFT, "name": "any"}, lambda a: (a["scale"], a["shift"])),
    "of arrays": ({"scale": SCALE.numpy(), "shift": [SHIFT.numpy()]}, lambda a: (a["scale"], a["shift"][0])),
    "ordered": (OrderedDict(scale=SCALE, shift=SHIFT), lambda a: (a["scale"], a["shift"])),
    "tuple": ((SCALE, SHIFT), lambda a: a),
    "list": ([SCALE, SHIFT], lambda a: (a[0], a[1])),
    "named tuple": (Both(SCALE, SHIFT), lambda a: (a.scale, a.shift)),
    "nested": ({"a": ({"b": [SCALE]}, 3), "c": None, "d": SHIFT}, lambda a: (a["a"][0]["b"][0], a["d"])),
}


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("name", WAYS)
def test_rows_of_structures_go_along_with_images(name: str, vectorized: bool) -> None:
    """z ~ N(shift, 1), x ~ N(z, scale): log p(x) is that of N(shift, 1 + scale^2), and the guide is the posterior."""
    argument, parts = WAYS[name]

    def model(x: Tensor, other: Any) -> None:
        scale, shift = parts(other)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            z = z if vectorized else z.view(len(x))  # which refuses a dimension of samples
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x: Tensor, other: Any) -> None:
        scale, shift = parts(other)
        precision = 1 + scale**-2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((shift + x / scale**2) / precision, precision**-0.5))

    exact = torch.distributions.Normal(SHIFT, (1 + SCALE**2).sqrt()).log_prob(X)
    for args, kwargs in (((argument,), {}), ((), {"other": argument})):
        found = ppl_gen.log_weights(model, guide, X, *args, num_samples=4, chunk_size=8, **kwargs)
        torch.testing.assert_close(found, exact.expand(4, -1), rtol=1e-12, atol=1e-12)
    (converted,), _ = as_arguments(X, (argument,), {}, nobody)
    assert Pair.read(model, guide, X, converted).vectorized == vectorized


def test_structures_of_as_many_parts_as_images() -> None:
    """A list of a row for each image is one tensor. A tuple of tensors that each have a row for each image stays."""
    one, two = torch.arange(2.0), torch.ones(2)
    (rows, parts), _ = as_arguments(X[:2], ([one, two], (one, two)), {}, nobody)
    assert isinstance(rows, Tensor) and rows.shape == (2, 2)
    assert isinstance(parts, tuple) and parts[0] is one and parts[1] is two
    assert take(torch.tensor([1, 1, 0]), torch.zeros(2), (parts,)).args[0][0].tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(BadInput, match=r"argument 2\['a'\] is a list of 2 sequences of different lengths.*pack_seq"):
        as_arguments(X[:2], ({"a": [torch.zeros(3, 2), torch.zeros(4, 2)]},), {}, nobody)
    weights = [torch.zeros(3, 2), torch.zeros(2, 4)]
    assert as_arguments(X[:2], (weights,), {}, nobody)[0][0][1] is weights[1]
    with pytest.raises(BadInput, match=r"argument 2\['m'\] is a masked array"):
        as_arguments(X[:3], ({"m": np.ma.masked_array([1.0, 2.0, 3.0], [0, 0, 1])},), {}, nobody)


# Sequences ---------------------------------------------------------------------------------------------------------


def _sequences(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, STEPS + 1, (count,), generator=generator)
    lengths[count // 2] = STEPS
    x = torch.randn(count, STEPS, generator=generator, dtype=F64)
    return x * (torch.arange(STEPS) < lengths[:, None]), lengths


@pytest.mark.parametrize("ordered", [True, False])
def test_rows_of_packed_sequences(ordered: bool) -> None:
    """Any rows, repeated or not, in float64 or as counts: unpacked they are the rows of the padded tensor, as long as
    before."""
    x, lengths = _sequences(6)
    if ordered:
        lengths, order = lengths.sort(descending=True)
        x = x[order]
    packed = pack_padded_sequence(x.unsqueeze(-1), lengths, batch_first=True, enforce_sorted=ordered)
    for rows in ([0], [5, 5, 1], [1, 2, 4], list(range(6))):
        index = torch.tensor(rows)
        batch = take(index, x, (packed, {"again": [packed]}), {"lengths": lengths})
        for found in (batch.args[0], batch.args[1]["again"][0]):
            padded, kept = pad_packed_sequence(found, batch_first=True)
            assert torch.equal(padded[..., 0], x[index]) and torch.equal(kept, lengths[index])
            assert padded.dtype == F64 and isinstance(found, PackedSequence)
    other = pack_padded_sequence(x[:3].unsqueeze(-1), torch.ones(3, dtype=torch.int64), batch_first=True)
    assert take(torch.tensor([0]), x, (other,)).args[0] is other  # of 3 sequences, beside 6 images


@pytest.mark.parametrize("kind", [torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU])
@pytest.mark.parametrize("both_ways", [True, False])
def test_recurrent_networks_take_them(kind: Any, both_ways: bool) -> None:
    """Steps that no sequence of the batch has change nothing: outputs and last states are those among all sequences."""
    torch.manual_seed(0)
    x, lengths = _sequences(6)
    net = kind(1, 3, num_layers=2, batch_first=True, bidirectional=both_ways).double()
    packed = pack_padded_sequence(x.unsqueeze(-1), lengths, batch_first=True, enforce_sorted=False)
    rows = (lengths < STEPS).nonzero()[:2, 0]
    whole, some = net(packed), net(take(rows, x, (packed,)).args[0])
    outputs = [pad_packed_sequence(each[0], batch_first=True)[0] for each in (whole, some)]
    torch.testing.assert_close(outputs[1], outputs[0][rows])
    states = [each[1] if isinstance(each[1], tuple) else (each[1],) for each in (whole, some)]
    for all_of_them, few in zip(*states, strict=True):
        torch.testing.assert_close(few, all_of_them[:, rows])


def _state_space(x: Tensor, packed: Any, about: dict[str, Tensor]) -> None:
    """z_t ~ N(0.8 z_{t-1}, 1), x_t ~ N(z_t, 0.5)."""
    z = torch.zeros(len(x), dtype=F64)
    with pyro.plate("sequences", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            with pyro.poutine.mask(mask=about["mask"][:, t]):
                z = pyro.sample(f"z_{t}", dist.Normal(0.8 * z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=x[:, t])


def _filter(x: Tensor, packed: PackedSequence, about: dict[str, Tensor]) -> None:
    """The guide reads the sequences from their packed form alone."""
    seen, lengths = pad_packed_sequence(packed, batch_first=True)
    assert torch.equal(lengths, about["lengths"])
    z = torch.zeros(len(x), dtype=F64)
    with pyro.plate("sequences", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            with pyro.poutine.mask(mask=about["mask"][:, t]):
                z = pyro.sample(f"z_{t}", dist.Normal(0.2 * z + 0.75 * seen[:, t, 0], 0.6))


def test_a_state_space_model_of_sequences_of_different_lengths() -> None:
    """log p(x) is that of the Gaussian of each sequence's own steps."""
    count = 20
    x, lengths = _sequences(count)
    packed = pack_padded_sequence(x.unsqueeze(-1), lengths, batch_first=True, enforce_sorted=False)
    about = {"mask": torch.arange(STEPS) < lengths[:, None], "lengths": lengths}
    root = torch.tensor([[0.8 ** (t - s) if s <= t else 0.0 for s in range(STEPS)] for t in range(STEPS)], dtype=F64)
    whole = root @ root.T + 0.25 * torch.eye(STEPS, dtype=F64)
    exact = torch.stack(
        [
            dist.MultivariateNormal(torch.zeros(n, dtype=F64), whole[:n, :n]).log_prob(x[i, :n])
            for i, n in enumerate(lengths.tolist())
        ]
    )
    args = (_state_space, _filter, x, packed, about)
    found = ppl_gen.log_marginal_likelihood(*args, num_samples=3000, ask_again=False)
    error = (found.log_px - exact) / found.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS and float(found.log_px_mc_var.max()) < 0.02
    pair = Pair.read(*args)
    assert pair.vectorized and pair.latent == tuple(f"z_{t}" for t in range(STEPS))


def test_steps_of_the_longest_sequence_of_a_batch() -> None:
    """Sites that the first images do not have would be left out of p and q: this is refused, in one sentence."""
    x, lengths = torch.randn(1000, 4, dtype=F64), torch.full((1000,), 2)

    def loop(x: Tensor, lengths: Tensor, guide: bool) -> None:
        with pyro.plate("data", len(x)):
            for t in range(int(lengths.max())):
                with pyro.poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(x[:, t] / 2 if guide else 0 * x[:, t], math.sqrt(0.5)))
                    if not guide:
                        pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def model(x: Tensor, lengths: Tensor) -> None:
        loop(x, lengths, False)

    def guide(x: Tensor, lengths: Tensor) -> None:
        loop(x, lengths, True)

    assert ppl_gen.log_weights(model, guide, x, lengths, num_samples=1).shape == (1, 1000)
    lengths[777] = 4
    with pytest.raises(BadInput, match=r"^model has other sites for a batch from image 500 on.*'x_2': sites must"):
        ppl_gen.log_weights(model, guide, x, lengths, num_samples=1)
    lengths[:] = torch.arange(1000) % 4 + 1
    with pytest.raises(BadInput, match="sites must be the same for every batch: loop over all steps of x, and mask"):
        ppl_gen.log_weights(model, guide, x, lengths, num_samples=1)


def test_images_that_are_no_tensor() -> None:
    packed = pack_padded_sequence(torch.zeros(2, 3, 1), torch.tensor([3, 2]), batch_first=True)
    for x, words in (({"x": X}, "x is a dict.*the rest of the dictionary"), (packed, "x is a PackedSequence.*padded")):
        with pytest.raises(BadInput, match=words):
            ppl_gen.log_weights(_state_space, _filter, x, num_samples=1)


def test_a_batch_keeps_what_has_no_rows() -> None:
    table, words = torch.zeros(3, 2), ["a", "b"]
    args = ({"table": table, "words": words}, 7)
    batch = take(torch.tensor([1]), *Batch(torch.zeros(4), args, {"size": torch.Size([2])}))
    assert batch.args[0]["table"] is table and batch.args[0]["words"] == words and batch.args[1] == 7
    assert batch.kwargs["size"] == torch.Size([2])
