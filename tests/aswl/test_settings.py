import numpy as np
import pytest
import torch
from torch import nn

import aswl


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one of density and gamma; got density=None, gamma=None"),
        ({"density": 0.1, "gamma": 1.0}, "exactly one of density and gamma"),
        ({"density": 0.0, "steps": 5}, r"density in \(0, 1\]; got 0\.0"),
        ({"density": 1.01, "steps": 5}, r"density in \(0, 1\]; got 1\.01"),
        ({"density": float("nan"), "steps": 5}, "density in .* got nan"),
        ({"gamma": -1.0}, r"gamma >= 0; got -1\.0"),
        ({"density": 0.1}, "schedule 'cubic' wants steps=.*got None"),
        ({"density": 0.1, "steps": 0}, "steps a whole number >= 1; got 0"),
        ({"density": 0.1, "steps": 2.5}, r"steps a whole number >= 1; got 2\.5"),
        ({"density": 0.1, "steps": 5, "schedule": "square"}, "'constant' or a callable; got 'square'"),
        ({"density": 0.1, "steps": 5, "begin": 0.8}, "0 <= begin <= end <= 1.*got begin=0.8, end=0.7"),
        ({"density": 0.1, "steps": 5, "end": 1.5}, "0 <= begin <= end <= 1.*got begin=0.0, end=1.5"),
        ({"density": 0.1, "steps": 5, "alpha": 0}, "alpha > 0; got 0"),
        ({"density": 0.1, "steps": 5, "min_keep": 0}, "min_keep a whole number >= 1; got 0"),
        ({"density": 0.1, "steps": 5, "refresh_every": 0}, "refresh_every a whole number >= 1; got 0"),
        ({"density": 0.1, "steps": 5, "band": 1.0}, r"band in \(0, 1\); got 1\.0"),
        ({"density": 0.1, "steps": 5, "dense_gradient": 2}, r"dense_gradient in \[0, 1\].*got 2"),
        ({"density": 0.1, "steps": 5, "pruned_decay": -1}, "pruned_decay >= 0; got -1"),
        ({"density": 0.1, "steps": 5, "attention_scale": "half"}, "'paper' or 'detached'; got 'half'"),
        ({"density": 0.1, "steps": 5, "attention_gradient": "none"}, "attention_gradient one of .*got 'none'"),
        ({"density": 0.1, "steps": 5, "thresholding": "soft"}, "thresholding one of .*'firm', 'hard'.*got 'soft'"),
        ({"density": 0.1, "steps": 5, "products": "fused"}, "thresholding='hard' with products='fused'.*got 'firm'"),
        ({"gamma": 1.0, "attention_gradient": "band"}, "attention_gradient one of .*got 'band'"),
        ({"gamma": 1.0, "initial_attention": 1.5}, "initial_attention in .*got 1.5"),
        ({"gamma": 1.0, "weight_penalty": -1}, "weight_penalty >= 0; got -1"),
        ({"gamma": 1.0, "penalty_target": 2}, "penalty_target in .*got 2"),
        ({"density": 0.1, "schedule": lambda step: 0.0}, "density in .* from the schedule, at step 0; got 0.0"),
    ],
)
def test_refuses(options, match):
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=match):
        aswl.ASWL(model, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"density": 0.1},
        {"density": 0.1, "schedule": lambda step: 2.0},
        {"density": 0.1, "schedule": lambda step: 0.5, "capturable": True},
    ],
    ids=["steps", "schedule", "capturable"],
)
def test_a_refused_option_leaves_the_model_alone(options):
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"^ASWL: .*got (None|2\.0)$"):
        aswl.ASWL(model, **options)
    assert type(model) is nn.Linear


def test_whole_numbers_of_other_libraries():
    sparsifier = aswl.ASWL(nn.Linear(4, 4), density=0.5, steps=np.int64(500), refresh_every=np.int32(2))
    assert sparsifier.settings.target(500) == 0.5


@pytest.mark.parametrize("options", [{"density": 1.0, "schedule": "constant"}, {"gamma": 0.0}])
def test_warns_when_nothing_will_be_pruned(options):
    with pytest.warns(UserWarning, match="prunes nothing"):
        aswl.ASWL(nn.Linear(4, 4), **options)


def test_thresholds_are_firm_under_a_budget_and_hard_in_the_paper():
    def layer(**options):
        model = nn.Linear(20, 20)
        sparsifier = aswl.ASWL(model, **options)
        return model.firm, sparsifier.settings.pruned_gradient(3)

    budget = {"density": 0.25, "schedule": "constant"}
    assert layer(**budget) == (True, 1.0)
    assert layer(**budget, thresholding="hard") == (False, 0.5)
    assert layer(density=0.01, schedule="constant") == (True, 0.25)
    assert layer(gamma=1.0) == (False, 1.0)
    assert layer(gamma=1.0, thresholding="firm") == (True, 1.0)


def test_paper_mode_starts_where_the_exponent_has_a_slope():
    for alpha, start in ((1.0, 1.0), (2.0, 0.99), (0.5, 0.99)):
        model = nn.Linear(20, 20)
        sparsifier = aswl.ASWL(model, gamma=1.0, alpha=alpha)
        assert model.attention.item() == pytest.approx(start)
        sparsifier.penalty().backward()
        assert model.attention.grad.item() > 0
        assert torch.isfinite(model.attention.grad).all()
