"""What a training run is asked to do: one flat dataclass, and YAML presets of it."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from aswl.training import models

PRESETS = Path(__file__).parent / "presets"
KINDS = ("mnist", "cifar10")  # data sets known by name; their files are the user's


@dataclass(frozen=True)
class TrainConfig:
    """Options of one training run. Raises ``ValueError`` for a value of the wrong type or out of range."""

    data: str = "digits"
    """digits (embedded), a path (parquet, idx, CIFAR archive), hf://owner/name; mnist, cifar10: folders of $ASWL_DATA."""
    model: str = "lenet300"
    """The network: lenet300, lenet5, resnet20, 32, 44, 56, 110, vgg16, wrn22-2, 16-8, 28-10, mobilenetv2, resnet50."""
    density: float | None = 0.05
    """Fraction of the weights to keep, in (0, 1]. Exactly one of density and gamma is a number."""
    gamma: float | None = None
    """Strength of the paper's density penalty; where the density ends is then a matter of training."""
    alpha: float = 1.0
    """Exponent of the pruning ratio (1 - attention)^alpha."""
    schedule: Literal["cubic", "linear", "constant"] = "cubic"
    """The way from density 1 to the one asked for."""
    begin: float | None = None
    """Fraction of training after which the density begins to fall; None is the method's default."""
    end: float | None = None
    """Fraction of training after which it is the one asked for; None is the method's default."""
    exclude: tuple[str, ...] = ()
    """Globs of the layers that stay dense."""
    refresh_every: int = 1
    """Optimizer steps between two refreshes of the thresholds."""
    products: Literal["dense", "sparse", "fused", "auto"] = "dense"
    """How layers multiply: by masked or kept weights, in one kernel, or as measured faster (this decides the rounding)."""
    thresholding: Literal["firm", "hard"] | None = None
    """Whether kept weights near the threshold fade in (not with fused products); None is the method's default."""
    pruned_decay: float | None = None
    """Factor of the weight decay for pruned weights; None is 1."""
    attention_lr: float | None = None
    """Learning rate of the attentions; None is the method's default."""
    epochs: int = 20
    """Passes over the training set."""
    batch_size: int = 128
    """Images per optimizer step, of all processes together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Update rule."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd; adamw has its own."""
    weight_decay: float = 0.0
    """Weight decay of all parameters but the attentions."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up: fall to 0 along a cosine, or stay."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rates rise linearly from 0."""
    augment: Literal["none", "crop", "crop_flip"] = "none"
    """Random shifts by up to 4 pixels, and mirroring."""
    twin: bool = False
    """First train the same network dense, by the same recipe, and report both."""
    seed: int = 0
    """Seed of the initial weights and of the order of the images."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    amp: Literal["none", "bf16"] = "none"
    """Automatic mixed precision."""
    channels_last: bool = False
    """Lay images out with their channels last, which makes convolutions faster, on a CPU by a quarter."""
    compile: bool = False
    """Run the network through torch.compile."""
    threads: int | None = None
    """CPU threads per process; None leaves PyTorch's choice."""
    output: Path | None = None
    """The run's folder; None is runs/PRESET."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is always one at the end and on Ctrl-C."""
    log_every: int = 50
    """Steps between two rows of metrics.jsonl; each epoch ends with one too."""
    resume: bool = False
    """Continue from the last checkpoint of the run's folder."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, under the run's folder."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if not _fits(hint, value := getattr(self, name)):
                raise ValueError(f"{name}: want {_describe(hint)}; got {value!r}")
        _check("model", self.model in models.names(), f"one of {', '.join(models.names())}", self.model)
        if (self.density is None) == (self.gamma is None):
            got = f"density={self.density}, gamma={self.gamma}"
            raise ValueError(f"density, gamma: want a number for one and None for the other; got {got}")
        _check("density", self.density is None or 0 < self.density <= 1, "above 0 and at most 1", self.density)
        for name in ("gamma", "momentum", "weight_decay", "pruned_decay", "warmup_epochs", "seed"):
            value = getattr(self, name)
            _check(name, value is None or 0 <= value < math.inf, "0 or more", value)
        for name in ("alpha", "lr", "attention_lr"):
            value = getattr(self, name)
            _check(name, value is None or 0 < value < math.inf, "above 0", value)
        for name in ("epochs", "batch_size", "refresh_every", "checkpoint_every", "log_every", "threads"):
            value = getattr(self, name)
            _check(name, value is None or value >= 1, "1 or more", value)
        _check("momentum", self.momentum < 1, "below 1", self.momentum)
        _check("seed", self.seed < 2**63, "below 2^63", self.seed)
        _check("warmup_epochs", self.warmup_epochs <= self.epochs, f"at most {self.epochs} epochs", self.warmup_epochs)

    def source(self) -> str:
        """Where the data are, the name of a kind replaced by its folder; raises ``ValueError`` if that is not known."""
        if self.data not in KINDS:
            return self.data
        if "ASWL_DATA" not in os.environ:
            raise ValueError(f"{self.data}: pass --data PATH (parquet, idx, CIFAR archive) or set ASWL_DATA")
        return str(Path(os.environ["ASWL_DATA"]) / self.data)

    def save(self, path: Path) -> None:
        """Write all options but ``resume`` as YAML, which :func:`load_preset` reads back."""
        options = dataclasses.asdict(self) | {"exclude": list(self.exclude), "output": str(self.output)}
        del options["resume"]
        path.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")


def presets() -> list[str]:
    """The names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str | Path) -> TrainConfig:
    """The options of a preset, by its name, or of a YAML file; what they leave out has its default.

    Raises ``ValueError`` for a name that is neither, for what is not YAML, and for an option that does not exist.
    """
    path = PRESETS / f"{name}.yaml" if str(name) in presets() else Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"preset: want one of {', '.join(presets())}, or a YAML file; got {str(name)!r}")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    _check(str(path), isinstance(options, dict), "a mapping of options", options)
    hints = get_type_hints(TrainConfig)
    if unknown := [key for key in options if key not in hints]:
        raise ValueError(f"{path}: no such option: {', '.join(map(str, unknown))}; there are {', '.join(hints)}")
    options = {"output": str(Path("runs") / path.stem)} | options
    return TrainConfig(**{key: _from_yaml(hints[key], value) for key, value in options.items()})


def _from_yaml(hint: Any, value: Any) -> Any:
    """What YAML cannot say: paths, tuples, and floats such as 1e-4, which YAML 1.1 takes for a string."""
    kinds = get_args(hint) or (hint,)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if isinstance(value, str) and float in kinds:
        try:
            return float(value)
        except ValueError:
            return value  # TrainConfig says what is wrong
    return tuple(value) if isinstance(value, list) else value


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) in (UnionType, Union):
        return any(_fits(kind, value) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(get_args(hint)[0], item) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(map(_describe, get_args(hint)))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return "names"
    return {type(None): "None", float: "a number", int: "a whole number", bool: "true or false"}.get(hint, "text")


def _check(name: str, condition: bool, wanted: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{name}: want {wanted}; got {got!r}")
