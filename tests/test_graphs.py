"""The emulated graph must fail where a real one would."""

import pytest
import torch
from graphs import Tape, capture


def test_replays_read_and_write_the_same_memory():
    x, total, seen = torch.tensor([1.0, 2.0]), torch.zeros(()), torch.zeros(2)

    def step():
        doubled = 2 * x
        view = doubled[1:]
        view += 1
        total.add_(doubled.sum())
        seen.copy_(doubled)

    replay = capture(step, "cpu")
    assert (total.item(), seen.tolist()) == (7, [2, 5])
    x.copy_(torch.tensor([10.0, 20.0]))
    replay()
    assert (total.item(), seen.tolist()) == (68, [20, 41])


def test_numbers_of_python_stay_what_they_were():
    count, total = 0, torch.zeros(())

    def step():
        nonlocal count
        count += 1
        total.add_(count)

    replay = capture(step, "cpu")
    replay()
    assert total == 2  # and not 3


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: float(x[0]),
        lambda x: 1 if x[0] > 0 else 2,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor(2.0, device=x.device) * x,
        lambda x: x + torch.zeros(2),
        lambda x: x + torch.arange(2),
    ],
)
def test_refuses_what_breaks_a_capture(step):
    x = torch.tensor([1.0, -1.0])
    with pytest.raises(RuntimeError), Tape():
        step(x)
    step(x)


def test_launches():
    x = torch.ones(3)
    with Tape() as tape:
        x.view(1, 3).detach().add_(torch.empty_like(x).copy_(x) * 2)
    assert tape.launches() == {"add_": 1, "copy_": 1, "mul": 1}
