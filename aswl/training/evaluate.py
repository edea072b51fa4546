"""Accuracy of a network on a set of images."""

import warnings
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import nn

from aswl.training.data import Batches
from aswl.training.distributed import World


class Score(NamedTuple):
    """How many images were recognised, and of how many."""

    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.images


def precision(amp: str, device: torch.device) -> AbstractContextManager:
    """The context in which a network runs; amp: "none" or "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")


def warn_of_emulation(amp: str, device: torch.device) -> None:
    """Warn where bf16 is asked of a CPU that has no instructions for it (measured on ResNet-20: 9 times fp32's time)."""
    mkldnn = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if amp == "bf16" and device.type == "cpu" and not mkldnn:
        warnings.warn(
            "amp: this CPU has no instructions for bf16, in which convolutions take about nine times as long as in fp32; "
            "--amp none trains in fp32",
            stacklevel=3,
        )


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, world: World, amp: str = "none") -> Score:
    """Count the images that the model recognises, in evaluation mode; every process counts its part of the batches."""
    training = model.training
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=world.device)
    with precision(amp, world.device):
        for images, labels in batches.epoch(0):
            counts[0] += (model(images).argmax(1) == labels).sum()
            counts[1] += len(labels)
    model.train(training)
    return Score(*world.sum(counts).tolist())
