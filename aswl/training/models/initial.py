"""How networks begin."""

from torch import nn


def he_initialize(model: nn.Module) -> None:
    """Draw the weights of linear layers and convolutions from N(0, 2 / fan-in) (He et al. 2015, "Delving Deep")."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
