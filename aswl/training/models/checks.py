"""What every network checks about its input."""

from torch import Tensor


def check_images(x: Tensor, input_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless x is a batch of images of input_shape, (C, H, W); costs no compiled graph break."""
    if x.shape[1:] != input_shape:
        raise ValueError(f"images: want [B, {', '.join(map(str, input_shape))}]; got {list(x.shape)}")
