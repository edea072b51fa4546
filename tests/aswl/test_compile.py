"""A compiled model trains like the eager one, is compiled once, and goes on while thresholds and attentions move."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aswl

COMPILER = any(map(shutil.which, ("g++", "clang++", "c++")))
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # inductor's own import


def training(device, backend=None, **method):
    """The model, its sparsifier, and a function that does a step and returns the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 20))
    model = model.append(nn.Linear(20, 5)).to(device)
    sparsifier = aswl.ASWL(model, **method)
    optimizer = aswl.optim.SGD(sparsifier.param_groups(lr=0.05, attention_lr=0.01), momentum=0.9)
    sparsifier.attach(optimizer)
    network = torch.compile(model, fullgraph=True, backend=backend) if backend else model

    def step(i):
        generator = torch.Generator().manual_seed(i)
        x, y = torch.randn(16, 3, 6, 6, generator=generator), torch.randint(5, (16,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x.to(device)), y.to(device))
        (loss + sparsifier.penalty()).backward()
        optimizer.step()
        return loss.item()

    return model, sparsifier, step


@pytest.mark.parametrize(
    "backend, method",
    [
        ("inductor", {"density": 0.1, "steps": 8}),
        ("aot_eager", {"density": 0.1, "steps": 8, "attention_scale": "paper", "attention_gradient": "both"}),
        ("aot_eager", {"density": 0.1, "steps": 8, "backward_density": 0.3, "capturable": True}),
        ("aot_eager", {"gamma": 1.0}),
    ],
    ids=str,
)
def test_compiled_once_and_like_eager(backend, method, device):
    if backend == "inductor" and not COMPILER:
        backend = "aot_eager"
    torch._dynamo.reset()
    model, sparsifier, step = training(device, backend, **method)
    twin, reference, eager_step = training(device, **method)
    before = step(0)
    assert before == pytest.approx(eager_step(0), rel=1e-4)
    with torch.compiler.set_stance("fail_on_recompile"):
        losses = [step(i) for i in range(1, 10)]
    assert losses == pytest.approx([eager_step(i) for i in range(1, 10)], rel=1e-2)
    thresholds = [layer.threshold for layer in sparsifier.summary().layers]
    if "density" in method:
        assert all(thresholds) and sparsifier.summary().kept == round(0.1 * sparsifier.summary().size)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()), rtol=2e-2, atol=2e-3)
    assert sparsifier.step == reference.step == 10


def test_compiled_with_products_of_one_kernel(triton_device):
    torch._dynamo.reset()
    method = {"density": 0.1, "steps": 2, "products": "fused", "thresholding": "hard"}
    model, _, step = training(triton_device, "aot_eager", **method)
    twin, _, eager_step = training(triton_device, **method)
    step(0), eager_step(0)
    with torch.compiler.set_stance("fail_on_recompile"):
        losses = [step(i) for i in range(1, 3)]
    assert losses == pytest.approx([eager_step(i) for i in range(1, 3)], rel=1e-2)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()), rtol=2e-2, atol=2e-3)
