"""One short real training per mode: what guards against a method that runs but does not learn."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aswl

datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def digits():
    bunch = datasets.load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32) / 16, torch.tensor(bunch.target)
    test = torch.arange(len(x)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


def accuracy(digits, epochs=30, norm=False, seed=0, attention_lr=0.001, **sparsity):
    x, y, test_x, test_y = digits
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    if norm:
        layers[1:2], layers[3:3] = [nn.BatchNorm1d(300), nn.ReLU()], []
    model = nn.Sequential(*layers)
    batches = epochs * (len(x) // 64)
    sparsifier = None
    groups = [{"params": model.parameters()}]
    if sparsity:
        steps = batches if "density" in sparsity else None
        sparsifier = aswl.ASWL(model, steps=steps, **sparsity)
        groups = sparsifier.param_groups(lr=0.1, attention_lr=attention_lr)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches)
    if sparsifier:
        sparsifier.attach(optimizer)
    for step in range(batches):
        chosen = torch.randint(len(x), (64,))
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        (loss + sparsifier.penalty() if sparsifier else loss).backward()
        optimizer.step()
        scheduler.step()
    plain = (sparsifier.finalize() if sparsifier else model).eval()
    with torch.no_grad():
        correct = (plain(test_x).argmax(1) == test_y).float().mean().item()
    kept = sum(int((m.weight != 0).sum()) for m in plain if isinstance(m, nn.Linear))
    return 100 * correct, kept


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_budget(digits, norm):
    dense, _ = accuracy(digits, norm=norm)
    assert dense > 96
    sparse, kept = accuracy(digits, norm=norm, density=0.03)
    assert kept == round(0.03 * 50_200)
    assert sparse > dense - 2


def test_learned_shares_beat_equal_ones(digits):
    """At 0.5% the shares decide: equal ones leave the last layer 5 weights for 10 classes."""
    learned, _ = accuracy(digits, density=0.005)
    equal, _ = accuracy(digits, density=0.005, attention_lr=0.0, guard=False)
    assert learned > equal + 5


def test_paper_mode(digits):
    sparse, kept = accuracy(digits, gamma=1.0)
    assert kept < 0.6 * 50_200
    assert sparse > 95
