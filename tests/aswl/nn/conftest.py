import pytest
from torch import nn

from aswl.nn import SparseConv2d, SparseLinear

LAYERS = {
    "linear": (lambda **kw: SparseLinear(6, 4, **kw), nn.Linear, (3, 6)),
    "conv": (lambda **kw: SparseConv2d(4, 6, 3, **kw), nn.Conv2d, (2, 4, 7, 6)),
}


@pytest.fixture(params=LAYERS)
def kind(request):
    """(constructor of a sparse layer, its parent, the shape of an input)."""
    return LAYERS[request.param]
