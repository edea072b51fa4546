"""The networks have the published sizes and layers, compile whole, train sparse, and refuse images of another shape."""

import pytest
import torch

import aswl
from aswl.training.models import MobileNetV2, ResNet, WideResNet, build, names, published_for
from aswl.training.models.mobilenet import InvertedResidual
from aswl.training.models.wide_resnet import Block

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
IMAGENET = (3, 224, 224)
# By hand from the published layers: convolutions (and the shortcuts') + linear layers with biases + 2 a batch-norm channel.
VGG16 = 9 * 1_634_496 + (512 * 512 + 512 + 512 * 10 + 10) + 2 * (4224 + 512)
WRN22_2 = (432 + 51_200 + 204_800 + 819_200) + (128 * 10 + 10) + 2 * (176 + 352 + 704 + 128)


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
        ("vgg16", CIFAR, VGG16),
        ("wrn22-2", CIFAR, WRN22_2),
        ("wrn16-8", CIFAR, 10_961_370),
        ("wrn28-10", CIFAR, 36_479_194),
        ("mobilenetv2", CIFAR, 3_504_872 - 1281 * 990),  # torchvision's, with 10 classes instead of 1,000
    ],
)
def test_published_sizes(name, input_shape, parameters):
    assert published_for(name) == (input_shape, 1000 if name == "resnet50" else 10)
    with torch.device("meta"):
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


@pytest.mark.parametrize("name", sorted(set(names()) - {"wrn16-8", "wrn28-10"}))  # slow, and only wider than wrn22-2
@pytest.mark.parametrize("input_shape", [MNIST, CIFAR, (2, 17, 21)])
def test_forward_and_backward(name, input_shape):
    model = build(name, input_shape, 7)
    logits = model(torch.randn(2, *input_shape))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20", "resnet50", "vgg16", "wrn22-2", "mobilenetv2"])
def test_empty_batch(name):
    assert build(name, MNIST, 10).eval()(torch.empty(0, *MNIST)).shape == (0, 10)


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20", "vgg16", "wrn22-2", "mobilenetv2"])
@pytest.mark.parametrize("got", [(2, 1, 27, 28), (2, 3, 28, 28), (1, 28, 28), (2, 784)])
def test_another_shape_is_refused(name, got):
    with pytest.raises(ValueError, match=r"images: want \[B, 1, 28, 28\]; got \[" + ", ".join(map(str, got))):
        build(name, MNIST, 10)(torch.zeros(got))


@pytest.mark.parametrize(
    ("layer", "following", "logit"),
    [("conv1", "conv2", 500 * 800 * 500), ("conv2", "fc1", 800 * 500), ("fc1", "fc2", 500)],
)
def test_lenet5_has_a_relu_after_each_hidden_layer(layer, following, logit):
    model = build("lenet5", MNIST, 10)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 1.0 if parameter.dim() > 1 else 0.0)
    for value, want in ((1.0, float(logit)), (-1.0, 0.0)):  # twice -1 would be +1 again, but for the ReLU between
        torch.nn.init.constant_(getattr(model, layer).bias, value)
        torch.nn.init.constant_(getattr(model, following).weight, value)
        assert model(torch.zeros(1, *MNIST)).tolist() == [[want] * 10]


def test_vgg16_layers():
    model = build("vgg16", CIFAR, 10)
    convolutions = [layer for layer in model.features if isinstance(layer, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert sum(c.in_channels * c.out_channels for c in convolutions) == 1_634_496
    assert model.features(torch.zeros(1, *CIFAR)).shape == (1, 512, 2, 2)


def test_wide_resnet_halves_twice():
    model = build("wrn22-2", CIFAR, 10)
    assert model.layer2(model.layer1(model.conv1(torch.zeros(1, *CIFAR)))).shape == (1, 64, 16, 16)
    strided = [name for name, module in model.named_modules() if getattr(module, "stride", 1) == (2, 2)]
    assert strided == [f"layer{stage}.0.{conv}" for stage in (2, 3) for conv in ("conv1", "shortcut")]
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 22


def test_wide_resnet_block_is_preactivated():
    same, wider = Block(2, 2, 1).eval(), Block(2, 4, 2).eval()
    for block in (same, wider):
        torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(same(x), x)  # nothing after the sum
    positive = (x / (1 + wider.bn1.eps) ** 0.5).relu()
    torch.testing.assert_close(wider(x), torch.nn.functional.conv2d(positive, wider.shortcut.weight, stride=2))


def test_mobilenetv2_strides_and_shortcuts():
    model = MobileNetV2(CIFAR, 10)
    strided = [name for name, module in model.named_modules() if getattr(module, "stride", 1) == (2, 2)]
    assert strided == [f"features.{block}.depthwise.0" for block in (4, 7, 14)]  # the first of 32, 64, 160 channels
    blocks = [module for module in model.features if isinstance(module, InvertedResidual)]
    assert [block.has_shortcut for block in blocks] == [
        *(False, False, True, False, True, True, False, True, True, True),
        *(False, True, True, False, True, True, False),
    ]
    block = blocks[2].eval()
    torch.nn.init.zeros_(block.project[0].weight)
    x = torch.randn(1, 24, 4, 4)
    assert torch.equal(block(x), x)  # linear: nothing after the sum


@pytest.mark.parametrize(
    ("name", "weights", "depthwise_weights"),
    [("vgg16", 14_977_728, 0), ("wrn22-2", 1_076_912, 0), ("mobilenetv2", 2_202_560 - 9 * 7136, 9 * 7136)],
)
def test_trains_sparse(name, weights, depthwise_weights):
    torch.manual_seed(0)
    model = build(name, (3, 16, 16), 10)
    sparsifier = aswl.ASWL(model, density=0.05, steps=2, schedule="constant", products="dense")
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.01), momentum=0.9)
    sparsifier.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.arange(4))
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    layers = [m for m in sparsifier.finalize().modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    depthwise = [layer.weight for layer in layers if getattr(layer, "groups", 1) > 1]
    pruned = [layer.weight for layer in layers if getattr(layer, "groups", 1) == 1]
    assert sum(weight.numel() for weight in pruned) == weights
    at_threshold = [layer.weight.abs() == layer.threshold for layer in model.modules() if hasattr(layer, "threshold")]
    ties = sum(max(int(equal.sum()) - 1, 0) for equal in at_threshold)  # kept, too: a few in millions of fp32 weights
    surplus = sum(int(weight.count_nonzero()) for weight in pruned) - round(0.05 * weights)
    assert 0 <= surplus <= ties <= 10
    assert sum(int(weight.count_nonzero()) for weight in depthwise) == depthwise_weights


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
        (("vgg16", (3, 32, 15), 10), "at least 16x16 pixels; got 32x15"),
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


@pytest.mark.parametrize(("depth", "width"), [(4, 2), (20, 2), (22, 0)])
def test_wide_resnet_depth_and_width(depth, width):
    with pytest.raises(ValueError, match=f"6n \\+ 4.*got {depth} and {width}"):
        WideResNet(CIFAR, 10, depth=depth, width=width)
