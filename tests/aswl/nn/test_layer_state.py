"""The way from and to dense layers, checkpoints, copies, and moves between dtypes and devices."""

import copy
import pickle

import pytest
import torch
from harness import masked, prune, randn
from torch import nn

from aswl.nn import SparseConv2d, SparseLinear


def test_from_dense_shares_the_parameters_and_leaves_the_dense_layer_alone(kind):
    construct, parent, shape = kind
    dense = construct().to_dense().eval()
    calls = []
    dense.register_forward_hook(lambda *args: calls.append(args))
    before = {name: copy.copy(value) for name, value in vars(dense).items()}
    layer = (SparseLinear if parent is nn.Linear else SparseConv2d).from_dense(dense)
    assert layer.weight is dense.weight and layer.bias is dense.bias and not layer.training
    layer.register_buffer("extra", torch.ones(1), persistent=False)
    layer.register_forward_hook(lambda *args: None)
    assert type(dense) is parent and vars(dense) == before
    x = torch.randn(shape)
    assert layer(x).equal(dense(x)) and len(calls) == 2  # the hook came along


@pytest.mark.parametrize("cls, wrong", [(SparseLinear, nn.Conv2d(1, 1, 1)), (SparseConv2d, nn.Conv1d(1, 1, 1))])
def test_from_dense_refuses_another_type(cls, wrong):
    with pytest.raises(TypeError, match=f"{cls.__name__}.from_dense: want nn.{cls.dense_type.__name__}; got Conv"):
        cls.from_dense(wrong)
    with pytest.raises(TypeError, match=f"got {cls.__name__}"):
        cls.from_dense(cls(1, 1) if cls is SparseLinear else cls(1, 1, 1))


@pytest.mark.parametrize("scale", ["paper", "detached"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_to_dense_folds_mask_and_attention(kind, scale, dtype):
    construct, parent, shape = kind
    layer = prune(construct(dtype=dtype))
    layer.attention_scale = scale
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    dense = layer.to_dense()
    assert type(dense) is parent and list(dense.state_dict()) == ["weight", "bias"]
    assert "attention" not in repr(vars(dense)) and repr(dense) == repr(layer).replace("Sparse", "")
    a = layer.attention if scale == "paper" else 1
    torch.testing.assert_close(dense.weight, (a * masked(layer.weight, layer.threshold)).to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(dense.bias, (a * layer.bias).to(dtype), rtol=0, atol=0)
    x = randn(shape, dtype)
    torch.testing.assert_close(dense(x), layer(x), rtol=0, atol=0)
    assert all(tensor.equal(before[name]) for name, tensor in layer.state_dict().items())
    assert isinstance(dense.weight, nn.Parameter) and dense.weight.requires_grad


def test_convert_and_fold_keep_the_object(kind):
    construct, parent, shape = kind
    dense = construct().to_dense()
    weight, x = dense.weight, torch.randn(shape)
    want = dense(x)
    sparse = (SparseLinear if parent is nn.Linear else SparseConv2d).convert_(dense)
    assert sparse is dense and sparse.weight is weight and sparse(x).equal(want)
    plain = prune(sparse).fold_()
    assert plain is dense and type(plain) is parent and plain.weight is weight
    assert (weight == 0).sum() == weight.numel() // 2
    assert list(dict(plain.named_parameters())) == ["weight", "bias"] and not list(plain.buffers())


def test_state_dict_round_trip(kind):
    construct, _, shape = kind
    layer, other = prune(construct()), construct()
    assert list(layer.state_dict()) == ["weight", "bias", "attention", "threshold"]
    other.load_state_dict(layer.state_dict())
    assert all(a.equal(b) for a, b in zip(layer.state_dict().values(), other.state_dict().values()))
    x = torch.randn(shape)
    assert other(x).equal(layer(x))


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.9])
def test_a_dense_checkpoint_keeps_as_many_weights(kind, fraction):
    construct, _, _ = kind
    layer = nn.Sequential(prune(construct(), fraction) if fraction else construct())
    checkpoint = nn.Sequential(construct(bias=True).to_dense()).state_dict()
    checkpoint["0.weight"] = 10 * checkpoint["0.weight"]
    kept, attention = layer[0].kept, layer[0].attention.item()
    layer.load_state_dict(checkpoint, strict=True)
    assert layer[0].weight.equal(checkpoint["0.weight"]) and layer[0].bias.equal(checkpoint["0.bias"])
    assert layer[0].kept == kept and layer[0].attention.item() == attention
    assert (layer[0].threshold.item() == 0) == (fraction == 0)


@pytest.mark.parametrize("absent", ["attention", "threshold", "weight"])
def test_an_incomplete_checkpoint_is_reported(kind, absent):
    layer = kind[0]()
    state = layer.state_dict()
    del state[absent]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{absent}"'):
        layer.load_state_dict(state)


def test_a_dense_checkpoint_of_another_shape_is_reported(kind):
    layer = prune(kind[0]())
    before = layer.threshold.clone()
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict({"weight": torch.ones(1, 1), "bias": layer.bias.detach()})
    assert layer.threshold.equal(before)


def test_a_checkpoint_of_either_sort_brings_a_meta_layer_to_life(kind):
    construct, _, shape = kind
    source, x = prune(construct()), torch.randn(shape)
    for state, want in ((source.state_dict(), source), (source.to_dense().state_dict(), source.to_dense())):
        layer = construct(device="meta")
        layer.load_state_dict(state, assign=True)
        torch.testing.assert_close(layer(x), want(x))
        assert layer.attention.requires_grad and layer.weight.equal(state["weight"])


def test_assigning_a_dense_checkpoint_moves_the_layer_to_its_device(kind):
    layer = kind[0]()
    layer.load_state_dict(kind[0]().to_dense().to("meta").state_dict(), assign=True)
    assert {name: t.device.type for name, t in layer.state_dict().items()} == dict.fromkeys(layer.state_dict(), "meta")


def test_assigning_a_dense_checkpoint_keeps_the_attention_trainable(kind):
    construct, _, shape = kind
    layer = prune(construct())
    layer.load_state_dict(construct().to_dense().state_dict(), assign=True)
    layer(torch.randn(shape)).sum().backward()
    assert layer.attention.is_leaf and layer.attention.grad is not None and layer.attention.item() == pytest.approx(0.6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(kind, duplicate):
    construct, _, shape = kind
    layer, x = prune(construct()), torch.randn(shape)
    layer.attention_scale = "detached"
    other = duplicate(layer)
    assert type(other) is type(layer) and other.attention_scale == "detached" and other(x).equal(layer(x))


@pytest.mark.parametrize("move", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to("cpu", torch.float16)])
def test_attention_and_threshold_stay_wide(kind, move):
    construct, _, shape = kind
    layer = prune(construct(), attention=1 / 3)
    before = layer.attention.item(), layer.threshold.item()
    layer(torch.randn(shape)).sum().backward()
    attention, grad = layer.attention, layer.attention.grad.clone()
    move(layer)
    assert layer.weight.dtype == layer.bias.dtype == layer.weight.grad.dtype != torch.float32
    assert layer.attention.dtype == layer.threshold.dtype == layer.attention.grad.dtype == torch.float32
    assert (layer.attention.item(), layer.threshold.item()) == before and layer.attention.grad.equal(grad)
    assert layer.attention is attention  # an optimizer may hold it
    layer(torch.randn(shape, dtype=layer.weight.dtype)).sum().backward()
    layer.double()
    assert {t.dtype for t in layer.state_dict().values()} == {torch.float64}


def test_reset_parameters_keeps_the_attention_object(kind):
    layer = prune(kind[0]())
    attention, weight = layer.attention, layer.weight.clone()
    layer.reset_parameters()
    assert layer.attention is attention and attention.item() == 1 and layer.threshold == 0 and layer.density == 1
    assert not layer.weight.equal(weight)
