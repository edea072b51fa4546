"""Options are checked when they are made, and presets are nothing but options."""

from pathlib import Path

import pytest

from aswl.training.config import TrainConfig, load_preset, presets


@pytest.mark.parametrize(
    "name, model, density, gamma, data",
    [
        ("digits", "lenet300", 0.05, None, "digits"),
        ("mnist", "lenet300", 0.02, None, "mnist"),
        ("mnist-1", "lenet300", 0.01, None, "mnist"),
        ("mnist-paper", "lenet300", None, 1.0, "mnist"),
        ("mnist-lenet5", "lenet5", 0.02, None, "mnist"),
        ("cifar10", "resnet20", 0.1, None, "cifar10"),
        ("cifar10-vgg16", "vgg16", 0.1, None, "cifar10"),
        ("cifar10-wrn22-2", "wrn22-2", 0.1, None, "cifar10"),
    ],
)
def test_presets(name, model, density, gamma, data):
    config = load_preset(name)
    assert (config.model, config.density, config.gamma, config.data) == (model, density, gamma, data)
    assert config.output == Path("runs") / name
    assert name in presets()


def test_the_mnist_preset_keeps_to_its_budget_of_epochs():
    config = load_preset("mnist")
    assert (config.epochs, config.batch_size, config.lr, config.momentum) == (100, 128, 0.1, 0.9)
    assert (config.optimizer, config.lr_schedule) == ("sgd", "cosine")


@pytest.mark.parametrize(
    "options, line",
    [
        ({"density": 0.0}, "density: want above 0 and at most 1; got 0.0"),
        ({"density": 1.5}, "density: want above 0 and at most 1; got 1.5"),
        ({"density": float("nan")}, "density: want above 0 and at most 1; got nan"),
        (
            {"gamma": 1.0},
            "density, gamma: want a number for one and None for the other; got density=0.05, gamma=1.0",
        ),
        (
            {"density": None},
            "density, gamma: want a number for one and None for the other; got density=None, gamma=None",
        ),
        ({"density": None, "gamma": -1.0}, "gamma: want 0 or more; got -1.0"),
        (
            {"model": "vgg"},
            "model: want one of lenet300, lenet5, resnet20, resnet32, resnet44, resnet56, resnet110, resnet50, vgg16, ",
        ),
        ({"epochs": 0}, "epochs: want 1 or more; got 0"),
        ({"epochs": 2.5}, "epochs: want a whole number; got 2.5"),
        ({"epochs": True}, "epochs: want a whole number; got True"),
        ({"lr": 0.0}, "lr: want above 0; got 0.0"),
        ({"lr": float("inf")}, "lr: want above 0; got inf"),
        ({"momentum": 1.0}, "momentum: want below 1; got 1.0"),
        ({"warmup_epochs": 21}, "warmup_epochs: want at most 20 epochs; got 21"),
        ({"optimizer": "lbfgs"}, "optimizer: want one of sgd, adamw; got 'lbfgs'"),
        ({"exclude": "fc1"}, "exclude: want names; got 'fc1'"),
        ({"threads": 0}, "threads: want 1 or more; got 0"),
        ({"seed": 2**63}, "seed: want below 2^63; got 9223372036854775808"),
        ({"attention_lr": "x"}, "attention_lr: want a number or None; got 'x'"),
        ({"twin": 1}, "twin: want true or false; got 1"),
        ({"data": 3}, "data: want text; got 3"),
    ],
)
def test_a_wrong_value_is_one_line(options, line):
    with pytest.raises(ValueError) as error:
        TrainConfig(**options)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_numbers_that_yaml_takes_for_strings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("weight_decay: 1e-4\nlr: 1\nexclude: [fc1, fc3]\noutput: there\n")
    config = load_preset(path)
    assert (config.weight_decay, config.lr, config.exclude, config.output) == (1e-4, 1, ("fc1", "fc3"), Path("there"))
    assert config.epochs == TrainConfig().epochs


def test_saved_options_are_a_preset(tmp_path):
    config = TrainConfig(density=None, gamma=0.5, exclude=("fc*",), output=tmp_path, threads=1, resume=True)
    config.save(tmp_path / "config.yaml")
    again = load_preset(tmp_path / "config.yaml")
    assert vars(again) == vars(config) | {"resume": False}


@pytest.mark.parametrize(
    "content, line",
    [
        ("lrr: 1", "no such option: lrr; there are data, model"),
        ("[1, 2]", "want a mapping of options; got [1, 2]"),
        ("", "want a mapping of options; got None"),
        ("lr: [", "not readable as YAML"),
        ("lr: fast", "lr: want a number; got 'fast'"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, line):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        load_preset(path)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(
        ValueError, match="preset: want one of cifar10, .*, digits, mnist, .* or a YAML file; got 'mnst'"
    ):
        load_preset("mnst")
    with pytest.raises(FileNotFoundError):
        load_preset("nowhere.yaml")


def test_where_the_data_are(monkeypatch):
    monkeypatch.delenv("ASWL_DATA", raising=False)
    assert TrainConfig(data="digits").source() == "digits"
    assert TrainConfig(data="some/folder").source() == "some/folder"
    with pytest.raises(ValueError, match="mnist: pass --data PATH .* or set ASWL_DATA"):
        load_preset("mnist").source()
    monkeypatch.setenv("ASWL_DATA", "sets")
    assert Path(load_preset("mnist").source()) == Path("sets/mnist")
