"""A whole step in a CUDA graph: what replays do is what the same steps do, one by one, without capture."""

import contextlib
import copy
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from graphs import CaptureError, Tape, capture, warming_up
from torch import nn
from torch.nn import functional as F

import aswl
from aswl import masking
from aswl.clock import Clock, DeviceClock
from aswl_kernels import native

WARMUP, STEPS = 3, 20
PARTS = "sparsifier", "model", "optimizer", "schedule"
METHODS = {
    "budget": {"density": 0.2, "steps": STEPS},
    "budget, no bands": {"density": 0.2, "steps": STEPS, "attention_gradient": "both", "alpha": 2.0},
    "linear schedules, scaled outputs": {
        "density": 0.3,
        "steps": STEPS,
        "schedule": "linear",
        "dense_gradient": lambda step: 1 / (1 + min(step, STEPS)),
        "attention_scale": "paper",
    },
    "budget, hard": {"density": 0.2, "steps": STEPS, "thresholding": "hard"},
    "constant": {"density": 0.1, "schedule": "constant", "dense_gradient": 0.25},
    "superset": {"density": 0.1, "steps": STEPS, "backward_density": 0.4},
    "paper": {"gamma": 0.5},
    "paper, both": {"gamma": 0.5, "attention_gradient": "both", "weight_penalty": 1e-3},
}
OPTIMIZERS = {  # whether the learning rate is a tensor that a schedule changes
    "sgd": (aswl.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}, False),
    "sgd, fused, scheduled": (aswl.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}, True),
    "adamw": (aswl.optim.AdamW, {"capturable": True}, True),
    "adamw, fused": (aswl.optim.AdamW, {"fused": True, "capturable": True}, True),
    "torch's": (torch.optim.SGD, {"momentum": 0.9, "fused": True}, True),
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """A CPU stands for a GPU: masks are made at once, and what layers read on a CPU, they leave where it is; torch's
    AdamW would refuse ``capturable``.
    """
    monkeypatch.setattr(native, "AVAILABLE", False)
    monkeypatch.setattr(masking, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    adam = sys.modules[torch.optim.Adam.__module__]  # torch.optim.adam is deleted
    real = adam._get_capturable_supported_devices
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *a: [*real(*a), "cpu"])


def net():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 6, 3, bias=False)
    return nn.Sequential(
        conv, nn.BatchNorm2d(6), nn.ReLU(True), nn.Flatten(), nn.Linear(96, 20), nn.ReLU(True), nn.Linear(20, 5)
    )


class Training:
    """A small network and its step on a batch that stays where it is in memory."""

    def __init__(self, method, optimizer, device, **options):
        self.model = net().to(device)
        self.sparsifier = aswl.ASWL(self.model, **method, **options)
        kind, settings, scheduled = optimizer
        rates = [torch.tensor(lr, device=device) if scheduled else lr for lr in (2**-5, 2**-8)]
        adaptive = kind is aswl.optim.AdamW
        groups = self.sparsifier.param_groups(lr=rates[0], attention_lr=rates[1], adaptive=adaptive)
        self.optimizer = kind(groups, **settings)
        self.sparsifier.attach(self.optimizer)
        rule = (lambda step: 0.5 ** (step / 8)) if scheduled else (lambda step: 1.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rule)
        self.x, self.y = torch.empty(16, 2, 6, 6, device=device), torch.empty(16, dtype=torch.long, device=device)
        self.repeat = self.step

    def step(self):
        self.optimizer.zero_grad()
        (F.cross_entropy(self.model(self.x), self.y) + self.sparsifier.penalty()).backward()
        self.optimizer.step()

    def run(self, begin, end):
        for i in range(begin, end):
            generator = torch.Generator().manual_seed(i)
            self.x.copy_(torch.randn(16, 2, 6, 6, generator=generator))
            self.y.copy_(torch.randint(5, (16,), generator=generator))
            self.repeat()
            self.schedule.step()

    def capture_after(self, steps, launchers=False):
        """Do so many steps, and one more, which the others then repeat."""
        device = self.x.device.type
        with warming_up(device):
            self.run(0, steps)
        self.repeat = lambda: setattr(self, "repeat", capture(self.step, device, launchers))
        self.run(steps, steps + 1)

    def state(self):
        sparsifier = self.sparsifier.state_dict()
        sparsifier.pop("break_even")
        return [self.model.state_dict(), self.optimizer.state_dict()["state"], sparsifier, self.sparsifier.densities()]


def same(got, want, device):
    exact = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(got, want, **exact, check_device=False)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_replays_are_the_steps(method, optimizer, device):
    graph = Training(method, optimizer, device, capturable=True)
    eager = Training(method, optimizer, device, guard=False)
    graph.capture_after(WARMUP)
    graph.run(WARMUP + 1, STEPS + 2)
    eager.run(0, STEPS + 2)
    assert graph.sparsifier.step == STEPS + 2
    same(graph.state(), eager.state(), device)


@pytest.mark.parametrize("name, products", [("sgd", "fused"), ("adamw", "dense")])
def test_replays_of_single_launches_are_the_steps(name, products, triton_device):
    """The same where Triton's kernels serve: their launchers, too, must leave nothing to Python."""
    method = METHODS["budget"] | {"products": products, "thresholding": "hard"}
    graph = Training(method, OPTIMIZERS[name], triton_device, capturable=True)
    eager = Training(method, OPTIMIZERS[name], triton_device, guard=False)
    graph.capture_after(WARMUP, launchers=True)
    graph.run(WARMUP + 1, WARMUP + 3)
    eager.run(0, WARMUP + 3)
    same(graph.state(), eager.state(), triton_device)


def test_without_capturable_a_step_reads_on_the_host():
    training = Training(METHODS["budget"], OPTIMIZERS["torch's"], "cpu", guard=False)
    with pytest.raises(CaptureError, match="tolist"):
        training.capture_after(WARMUP)


def test_launches():
    """One for all masks, one pass, and a handful for all layers together; none for the attentions' own gradients."""
    training = Training(METHODS["budget"], OPTIMIZERS["sgd, fused, scheduled"], "cpu", capturable=True)
    training.run(0, WARMUP)
    with Tape() as sparse:
        training.step()
    plain = net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=torch.tensor(0.1), momentum=0.9, nesterov=True, fused=True)
    for _ in range(WARMUP):
        with Tape() as dense:
            optimizer.zero_grad()
            F.cross_entropy(plain(training.x), training.y).backward()
            optimizer.step()
    more = sparse.launches() - dense.launches()
    assert more["gate_all"] == more["fused_sgd_"] == more["magnitude_threshold"] == more["share_budget"] == 1
    assert sum(more.values()) <= 21 and "gate" not in more and "attention_gradient" not in more, more


@pytest.mark.parametrize("name", [name for name, (kind, *_) in OPTIMIZERS.items() if kind is not torch.optim.SGD])
def test_all_that_changes_on_the_device_stays_in_the_fused_pass(name):
    training = Training(METHODS["budget"], OPTIMIZERS[name], "cpu", capturable=True)
    training.run(0, WARMUP)
    with Tape() as tape:
        training.step()
    assert tape.launches()["fused_adamw_" if "adamw" in name else "fused_sgd_"] == 1


def test_a_state_goes_both_ways(device):
    """From captured steps to others, and back into a graph that goes on."""
    method = METHODS["budget"]
    graph = Training(method, OPTIMIZERS["torch's"], device, capturable=True)
    eager = Training(method, OPTIMIZERS["torch's"], device, guard=False)
    graph.capture_after(WARMUP)
    graph.run(WARMUP + 1, 8)
    states = copy.deepcopy([getattr(graph, name).state_dict() for name in PARTS])
    assert type(states[0]["step"]) is int and states[0]["step"] == states[0]["observed"] == 8
    for name, state in zip(PARTS, states):
        getattr(eager, name).load_state_dict(state)
    eager.run(8, 12)
    graph.run(8, 12)
    same(graph.state(), eager.state(), device)
    for part in ("model", "sparsifier"):  # back in time, in place
        getattr(graph, part).load_state_dict(states[PARTS.index(part)])
    assert graph.sparsifier.step == 8
    graph.run(8, 9)
    assert graph.sparsifier.step == 9
    assert graph.sparsifier.summary().kept == eager_budget(eager, 9)


def eager_budget(training, step):
    return round(training.sparsifier.settings.target(step) * training.sparsifier.summary().size)


@pytest.mark.parametrize("total", [1000, 34300, 10**9 + 7])
@pytest.mark.parametrize("schedule", ["cubic", "linear", "constant"])
def test_budgets_are_those_of_the_schedule(schedule, total):
    settings = aswl.ASWL(nn.Linear(4, 4), density=0.1, steps=10, schedule=schedule, capturable=True).settings
    structure = SimpleNamespace(total=total, device=torch.device("cpu"))
    clock, device_clock = Clock(settings, structure), DeviceClock(settings, structure)
    for step in range(14):
        assert clock.step == device_clock.step == step
        assert device_clock.budget.dtype == torch.int64 and device_clock.budget == clock.budget
        assert device_clock.pruned_gradient == torch.tensor(clock.pruned_gradient)
        clock.advance()
        device_clock.advance()


def test_a_schedule_without_end_is_refused():
    for options in ({"schedule": lambda step: 0.5}, {"schedule": "constant", "dense_gradient": lambda step: 0.5}):
        with pytest.raises(ValueError, match="want steps= with capturable=True"):
            aswl.ASWL(nn.Linear(4, 4), density=0.5, capturable=True, **options)
    aswl.ASWL(nn.Linear(4, 4), density=0.5, capturable=True, schedule="constant")


def test_a_schedule_out_of_range_is_refused_beforehand():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"density in \(0, 1\] from the schedule, at step 4; got 0.0"):
        aswl.ASWL(model, density=0.5, steps=10, capturable=True, schedule=lambda step: 1 - step / 4)
    assert type(model[0]) is nn.Linear


def test_what_a_graph_cannot_do_is_refused():
    with pytest.raises(ValueError, match="want guard=False with capturable=True"):
        aswl.ASWL(nn.Linear(4, 4), density=0.5, schedule="constant", capturable=True, guard=True)
    with pytest.raises(ValueError, match="want refresh_every=1 with capturable=True.*got 2"):
        aswl.ASWL(nn.Linear(4, 4), density=0.5, schedule="constant", capturable=True, refresh_every=2)


def test_a_grad_scaler_is_refused():
    training = Training(METHODS["budget"], OPTIMIZERS["sgd, fused, scheduled"], "cpu", capturable=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(training.model(torch.randn(4, 2, 6, 6)).sum()).backward()
    before = [p.detach().clone() for p in training.model.parameters()]
    with pytest.raises(RuntimeError, match="want no GradScaler with capturable=True"):
        scaler.step(training.optimizer)
    assert all(p.equal(b) for p, b in zip(training.model.parameters(), before))


def test_the_documented_recipe(device, monkeypatch, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text.partition("## A step in a CUDA graph")[2], re.DOTALL)
    if device == "cpu":
        code = code.replace('"cuda"', '"cpu"').replace(".cuda()", ".clone()")
        stream = SimpleNamespace(wait_stream=lambda other: None)
        stand_ins = {"Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": Tape}
        stand_ins |= {"stream": lambda stream: contextlib.nullcontext(), "graph": lambda tape: tape}
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 4)).to(device)
    x, y = torch.randn(64, 12), torch.randint(4, (64,))
    batches = iter([(x, y)] * 40)
    names = {"torch": torch, "aswl": aswl, "F": F, "model": model, "batches": batches, "total_steps": 44}
    with torch.no_grad():
        before = F.cross_entropy(model(x.to(device)), y.to(device))
    (tmp_path / "recipe.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "recipe.py"), names)
    assert names["loss"] < 0.9 * before
    assert names["sparsifier"].summary().kept == round(0.05 * 480)
    assert names["rates"][0] == names["optimizer"].param_groups[0]["lr"] < 0.01
