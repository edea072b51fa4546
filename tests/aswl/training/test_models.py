"""The networks have the published sizes, compile whole, and refuse images of another shape."""

import pytest
import torch

from aswl.training.models import ResNet, build, names, published_for

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
IMAGENET = (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "input_shape", "parameters"),
    [
        ("lenet300", MNIST, 266_610),
        ("lenet5", MNIST, 431_080),
        ("resnet20", CIFAR, 269_722),
        ("resnet32", CIFAR, 464_154),
        ("resnet56", CIFAR, 853_018),
        ("resnet110", CIFAR, 1_727_962),
        ("resnet50", IMAGENET, 25_557_032),
    ],
)
def test_published_sizes(name, input_shape, parameters):
    assert published_for(name) == (input_shape, 1000 if name == "resnet50" else 10)
    model = build(name, *published_for(name))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_resnet50_is_torchvisions():
    model = build("resnet50", IMAGENET, 1000)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert len(shapes) == 320 and shapes["layer1.0.downsample.0.weight"] == [256, 64, 1, 1]
    assert shapes["layer4.2.bn3.running_var"] == [2048] and shapes["fc.weight"] == [1000, 2048]
    strided = [name for name, module in model.named_modules() if getattr(module, "stride", 1) == (2, 2)]
    blocks = [f"layer{stage}.0.{conv}" for stage in (2, 3, 4) for conv in ("conv2", "downsample.0")]
    assert strided == ["conv1", *blocks]
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


def test_layer_names():
    assert [name for name, _ in build("lenet300", MNIST, 10).named_children()] == ["fc1", "fc2", "fc3"]
    assert [name for name, _ in build("lenet5", MNIST, 10).named_children()] == ["conv1", "conv2", "fc1", "fc2"]
    assert [name for name, _ in build("resnet20", CIFAR, 10).named_children()][-1] == "fc"
    assert build("lenet5", MNIST, 10).fc1.in_features == 800


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("input_shape", [MNIST, CIFAR, (2, 17, 21)])
def test_forward_and_backward(name, input_shape):
    model = build(name, input_shape, 7)
    logits = model(torch.randn(2, *input_shape))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20", "resnet50"])
def test_empty_batch(name):
    assert build(name, MNIST, 10).eval()(torch.empty(0, *MNIST)).shape == (0, 10)


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20"])
@pytest.mark.parametrize("got", [(2, 1, 27, 28), (2, 3, 28, 28), (1, 28, 28), (2, 784)])
def test_another_shape_is_refused(name, got):
    with pytest.raises(ValueError, match=r"images: want \[B, 1, 28, 28\]; got \[" + ", ".join(map(str, got))):
        build(name, MNIST, 10)(torch.zeros(got))


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20"])
def test_compiles_whole(name):
    torch._dynamo.reset()
    model = build(name, MNIST, 10).eval()
    x = torch.randn(3, *MNIST)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_shortcut_is_subsampled_and_padded():
    block = ResNet(CIFAR, 10).layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 16, 4, 4)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_he_initialisation():
    torch.manual_seed(0)
    weight = ResNet(CIFAR, 10).layer3[2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("vgg", MNIST, 10), "want one of lenet300, lenet5, resnet20, .*got 'vgg'"),
        (("lenet5", (1, 15, 28), 10), "at least 16x16 pixels; got 15x28"),
        (("lenet300", (28, 28), 10), r"got \(28, 28\) and 10"),
        (("lenet300", (1, 0, 28), 10), r"got \(1, 0, 28\)"),
        (("resnet20", CIFAR, 0), "and 0"),
    ],
)
def test_build_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        build(*arguments)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_resnet_depth(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 2.*got {depth}"):
        ResNet(CIFAR, 10, depth=depth)
