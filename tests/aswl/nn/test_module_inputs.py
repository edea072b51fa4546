"""PyTorch's own module tests (torch/testing/_internal/common_modules.py) over the sparse layers."""

import copy
import io
import pickle
from unittest import mock

import hypothesis
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from aswl.nn import SparseConv2d, SparseLinear

with mock.patch("torch.backends.disable_global_flags"):  # it would lock torch.backends for the whole run
    from torch.testing._internal.common_modules import module_db
hypothesis.settings.load_profile("aswl")  # that import loads PyTorch's

SPARSE = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}


def module_inputs(training=True, dtype=torch.float64, requires_grad=True):
    """(parent, sparse class, ModuleInput) of every input that PyTorch tests Linear and Conv2d with."""
    torch.manual_seed(0)
    for info in module_db:
        if info.module_cls in SPARSE:
            for given in info.module_inputs_func(
                info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
            ):
                yield info.module_cls, SPARSE[info.module_cls], given


def each(**options):
    """One test per module input."""
    rows = list(module_inputs(**options))
    ids = [f"{parent.__name__}-{i}-{given.desc or 'batch'}" for i, (parent, _, given) in enumerate(rows)]
    return pytest.mark.parametrize("parent, sparse, given", rows, ids=ids)


def build(cls, given, dtype=torch.float64, **factory):
    torch.manual_seed(1)
    return cls(*given.constructor_input.args, **given.constructor_input.kwargs, dtype=dtype, **factory)


def forward_input(given):
    """The input tensor, which some rows pass by position and some by name."""
    return (*given.forward_input.args, *given.forward_input.kwargs.values())[0]


def test_both_layers_have_module_inputs():
    assert {parent for parent, _, _ in module_inputs()} == set(SPARSE)


@pytest.mark.parametrize("training", [True, False])
@each()
def test_forward_equals_the_parents_and_the_reference_function(parent, sparse, given, training):
    layer, dense = build(sparse, given).train(training), build(parent, given).train(training)
    assert layer.weight.equal(dense.weight)  # the same initialisation from the same seed
    args, kwargs = given.forward_input.args, given.forward_input.kwargs
    got = layer(*args, **kwargs)
    torch.testing.assert_close(got, dense(*args, **kwargs), rtol=0, atol=0)
    if given.reference_fn is not None:
        torch.testing.assert_close(got, given.reference_fn(layer, *args, **kwargs))


@pytest.mark.parametrize("training", [True, False])
@each()
def test_backward_equals_the_parents(parent, sparse, given, training):
    layer, dense = build(sparse, given).train(training), build(parent, given).train(training)
    x = forward_input(given)
    grads = []
    for module in (layer, dense):
        y = module(x)
        shared = [module.weight, *([] if module.bias is None else [module.bias])]
        grads.append(torch.autograd.grad(y.square().sum(), [x, *shared]))
    torch.testing.assert_close(*grads)


@each()
def test_gradcheck_and_gradgradcheck(parent, sparse, given):
    layer, x = build(sparse, given), forward_input(given)
    names, parameters = zip(*layer.named_parameters())

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert "attention" in names
    assert gradcheck(call, (x, *parameters)) and gradgradcheck(call, (x, *parameters))


@each()
def test_non_contiguous_inputs_and_grads(parent, sparse, given):
    layer, x = build(sparse, given), forward_input(given).detach()

    def run(x, strided_grad):
        x = x.requires_grad_()
        y = layer(x)
        grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        grad = torch.stack([grad, grad], -1)[..., 0] if strided_grad else grad
        return y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad)

    gaps = torch.stack([x, torch.full_like(x, float("nan"))], -1)[..., 0]
    assert not gaps.is_contiguous() or gaps.numel() < 2
    for strided_x, strided_grad in ((gaps, False), (x, True), (gaps.clone(memory_format=torch.preserve_format), True)):
        torch.testing.assert_close(run(strided_x, strided_grad), run(x.clone(), False))


@each()
def test_pickle_and_state_dict(parent, sparse, given):
    layer, x = build(sparse, given), forward_input(given)
    with torch.no_grad():
        layer.attention.fill_(0.5)
        layer.threshold.fill_(0.05)
    want = layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    fresh = build(sparse, given)
    fresh.load_state_dict(layer.state_dict())
    copies = (
        pickle.loads(pickle.dumps(layer)),
        copy.deepcopy(layer),
        torch.load(buffer, weights_only=False),
        fresh,
    )
    for other in copies:
        assert type(other) is sparse and other.weight is not layer.weight
        assert other(x).equal(want) and not other(x).equal(build(sparse, given)(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@each()
def test_factory_arguments(parent, sparse, given, device, dtype):
    layer = build(sparse, given, dtype, device=device)
    for name, tensor in layer.state_dict().items():
        assert tensor.device.type == device
        scalar = name in ("attention", "threshold")
        assert tensor.dtype == (torch.promote_types(dtype, torch.float32) if scalar else dtype)
    with torch.device(device):
        assert {t.device.type for t in build(sparse, given).state_dict().values()} == {device}


@each()
def test_moves_between_dtypes_keep_forward_equal_to_the_parents(parent, sparse, given):
    layer, dense = build(sparse, given), build(parent, given)
    x = forward_input(given).detach()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float32, torch.float64):
        layer, dense = layer.to(dtype), dense.to(dtype)
        got, want = layer(x.to(dtype)), dense(x.to(dtype))
        assert got.dtype == dtype and got.equal(want)
        assert {layer.attention.dtype, layer.threshold.dtype} == {torch.promote_types(dtype, torch.float32)}


@each()
def test_train_and_eval_agree(parent, sparse, given):
    layer, x = build(sparse, given), forward_input(given)
    assert layer.train()(x).equal(layer.eval()(x))


@each()
def test_repr_is_the_parents(parent, sparse, given):
    assert repr(build(sparse, given)) == repr(build(parent, given)).replace(parent.__name__, sparse.__name__)


@each()
def test_to_empty_and_reset_parameters(parent, sparse, given):
    layer = build(sparse, given, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.fill_(float("nan"))
    torch.manual_seed(1)
    layer.reset_parameters()
    for name, tensor in build(sparse, given).state_dict().items():
        assert layer.state_dict()[name].equal(tensor), name
    assert layer.attention.item() == 1 and layer.threshold.item() == 0


@each()
def test_skip_init(parent, sparse, given):
    arguments = given.constructor_input
    layer = nn.utils.skip_init(sparse, *arguments.args, **arguments.kwargs, dtype=torch.float64)
    layer.load_state_dict(
        build(parent, given).state_dict() | {"attention": torch.ones(1), "threshold": torch.zeros(())}
    )
    assert layer(forward_input(given)).equal(build(parent, given)(forward_input(given)))
