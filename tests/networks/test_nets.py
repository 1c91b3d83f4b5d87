import pytest
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.networks import nets
from ppl_gen.networks.nets import activation, decoder, encoder


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (5, 7), (3, 6, 9), (1, 1)])
@pytest.mark.parametrize("batch", [(), (2,), (4, 2)])
def test_shapes(network: str, shape: tuple[int, ...], batch: tuple[int, ...]) -> None:
    options = {"hidden_dims": (7, 6), "activation_name": "tanh", "network": network, "channels": (2, 3)}
    pixels = torch.Size(shape).numel()
    down = encoder(shape, 5, **options)  # type: ignore[arg-type]
    up, layer, bias = decoder(shape, 5, **options)  # type: ignore[arg-type]
    x = torch.rand(*batch, pixels)
    assert down(x).shape == (*batch, 5)
    assert bias.shape == (pixels,)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        bias.copy_(torch.arange(pixels))
    out = up(down(x))
    assert out.shape == (*batch, pixels)
    torch.testing.assert_close(out, torch.arange(pixels).float().expand_as(out))


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_leading_dimensions_do_not_mix(network: str) -> None:
    options = {"hidden_dims": (7,), "activation_name": "relu", "network": network, "channels": (2,)}
    down = encoder((6, 6), 4, **options)  # type: ignore[arg-type]
    up, _, _ = decoder((6, 6), 4, **options)  # type: ignore[arg-type]
    for net, size in ((down, 36), (up, 4)):
        x = torch.randn(3, 2, size)
        torch.testing.assert_close(net(x)[1, 1], net(x[1, 1]))


def test_linear_without_hidden_layers() -> None:
    net = encoder((2, 2), 3, hidden_dims=(), activation_name="relu", network="mlp", channels=())
    assert sum(p.numel() for p in net.parameters()) == 4 * 3 + 3


def test_unknown_activation_and_shape() -> None:
    with pytest.raises(BadInput, match="activation swish: choose from relu"):
        activation("swish")
    with pytest.raises(BadInput, match="network conv"):
        encoder((16,), 3, hidden_dims=(), activation_name="relu", network="conv", channels=(2,))


def test_products_are_rounded_to_bfloat16_only_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, gradient and second derivative are those of the rounded numbers, to the rounding of a product: 2^-8 of
    its size; at any other precision, and in float64, exactly those of `nn.Linear`."""
    monkeypatch.setattr(nets, "_products_of_bfloat16", lambda: True)
    layer = nets.Linear(6, 4)
    x = torch.randn(5, 6, requires_grad=True)

    def results() -> list[torch.Tensor]:
        out = layer(x).square().sum()
        first = torch.autograd.grad(out, [x, *layer.parameters()], create_graph=True)
        return [out.sqrt(), *first, *torch.autograd.grad(first[0].square().sum(), [x, layer.weight])]

    exact = results()
    assert all(torch.equal(*pair) for pair in zip(results(), exact, strict=True))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        for rounded, whole in zip(results(), exact, strict=True):
            assert rounded.dtype == torch.float32 and not torch.equal(rounded, whole)
            assert (rounded - whole).abs().max() < 4 * 2**-8 * whole.abs().max()  # four products, one after the other
        layer.double()
        x = x.detach().double()
        plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
        assert torch.equal(layer(x), plain)
    finally:
        torch.set_float32_matmul_precision(before)
