"""Encoded images (PNG, JPEG, ...) to one uint8 tensor, with Pillow."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GREY = ("1", "L", "LA", "La")
COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")


def decode(encoded: Sequence[bytes | None], place: str) -> Tensor:
    """Decode images of one size to uint8 [N, C, H, W], C = 1 when all are grey and 3 otherwise.

    Raises ValueError, naming the place and the row, for bytes that are no image, for more than 8 bits a channel, and
    for another size than the first image's.
    """
    if not encoded:
        raise ValueError(f"{place}: holds no images")
    height, width = _pixels(encoded[0], place, 0).shape[:2]
    images = torch.empty(len(encoded), 3, height, width, dtype=torch.uint8)
    colour = False
    # One thread: most of the time goes to Python around the codecs, and a second thread made small images slower.
    for row, (content, target) in enumerate(zip(encoded, images.numpy().transpose(0, 2, 3, 1))):
        pixels = _pixels(content, place, row)
        if pixels.shape[:2] != (height, width):
            got = "x".join(map(str, pixels.shape[:2]))
            raise ValueError(f"{place}: row {row} is {got} pixels (height x width), row 0 is {height}x{width}")
        target[:] = pixels  # a grey image goes to all three channels
        colour |= pixels.shape[2] == 3
    return images if colour else images[:, :1].clone()


def _pixels(encoded: bytes | None, place: str, row: int) -> np.ndarray:
    """One image as uint8 [H, W, 1 or 3]."""
    if encoded is None:
        raise ValueError(f"{place}: row {row} holds no image bytes")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode not in GREY + COLOUR:
                raise ValueError(f"mode {image.mode} is not 8 bits a channel")
            pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    except Exception as error:  # a decoder fed with damaged bytes may raise anything
        raise ValueError(f"{place}: row {row} is not a readable image ({error})") from error
    return pixels.reshape(*pixels.shape[:2], -1)
