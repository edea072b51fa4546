"""A small convolutional network, its sparsifier with an optimizer, and steps on random batches."""

import torch
from torch import nn
from torch.nn import functional as F

import aswl

TOTAL = 216 + 5760 + 100  # weights of the three layers below


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 20),
        nn.Linear(20, 5),
    )


def follow(model, optimizer=torch.optim.SGD, lr=0.05, options=None, **sparsity):
    sparsifier = aswl.ASWL(model, **sparsity)
    adaptive = optimizer not in (torch.optim.SGD, aswl.optim.SGD)
    optimizer = optimizer(sparsifier.param_groups(lr=lr, adaptive=adaptive, **(options or {})))
    sparsifier.attach(optimizer)
    return sparsifier, optimizer


def batch(step=0):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 3, 6, 6, generator=generator), torch.randint(5, (16,), generator=generator)


def train(model, sparsifier, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x, y = batch(step)
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + sparsifier.penalty()).backward()
        optimizer.step()
