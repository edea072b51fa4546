"""``attention_steered``: the layer computes no gradient for the attention, and everything else is as it was."""

import pytest
import torch
from harness import prune
from torch.func import functional_call, grad, vmap

from aswl.nn import SparseConv2d, SparseLinear


def pair(kind, scale="detached", products="dense"):
    """A layer and its steered twin, and an input."""
    layers = []
    for steered in (False, True):
        torch.manual_seed(0)
        layer, x = (
            (SparseLinear(6, 5), torch.randn(7, 6))
            if kind == "linear"
            else (SparseConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5))
        )
        prune(layer).attention_scale = scale
        layer.products, layer.attention_steered = products, steered
        layers.append(layer)
    return *layers, x


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("products", ["dense", "sparse"])
@pytest.mark.parametrize("scale", ["detached", "paper"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_only_the_attention_has_no_gradient(kind, scale, products):
    plain, steered, x = pair(kind, scale, products)
    arrived = []
    end = torch.autograd.graph.get_gradient_edge(steered.attention).node
    end.register_hook(lambda *_: arrived.append(True))
    torch.testing.assert_close(gradients(steered, x), gradients(plain, x), rtol=0, atol=0)
    assert plain.attention.grad is not None and steered.attention.grad is None
    assert arrived == [True]  # what DistributedDataParallel waits for


def test_one_node_masks_the_weight_and_holds_the_attention():
    _, steered, x = pair("conv")
    node = steered(x).grad_fn.next_functions[1][0]
    leaves = [after.variable for after, _ in node.next_functions if after is not None]
    assert len(leaves) == 2 and leaves[0] is steered.weight and leaves[1] is steered.attention


def test_without_gradients_nothing_is_tied():
    plain, steered, x = pair("linear")
    with torch.no_grad():
        y = steered(x)
    assert not y.requires_grad and torch.equal(y, plain(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_an_input_of_another_dtype_is_refused(dtype):
    _, steered, x = pair("conv")
    with pytest.raises(ValueError, match="masked_conv2d: want "):
        steered(x.to(dtype))


def test_half_precision_over_wide_weights():
    plain, steered, x = pair("linear")
    results = [gradients(layer, x.bfloat16()) for layer in (steered, plain)]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        results = [gradients(layer, x) for layer in pair("linear")[1::-1]]
    assert results[0][0].dtype == torch.bfloat16 and results[0][2].dtype == torch.float32
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_under_transforms():
    plain, steered, x = pair("linear")
    parameters = {name: value.detach() for name, value in plain.named_parameters()}
    results = []
    for layer in (plain, steered):

        def loss(p, row, layer=layer):
            return functional_call(layer, p, (row,)).square().sum()

        results.append(vmap(grad(loss), in_dims=(None, 0))(parameters, x))
    assert not results[1].pop("attention").any() and results[0].pop("attention").any()
    torch.testing.assert_close(*results)


def test_dense_again():
    _, steered, x = pair("conv")
    torch.testing.assert_close(steered.to_dense()(x), steered(x))
    assert "attention_steered" not in vars(steered.to_dense())
