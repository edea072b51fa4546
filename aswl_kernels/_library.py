"""The one place where operators are defined: schema, reference kernel and fake."""

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("aswl", "DEF")


def define(schema: str, reference: Callable, fake: Callable | None = None) -> Callable:
    """Define ``aswl::<schema>`` with ``reference`` as the kernel of every device that has none of its own.

    ``fake`` computes the output's metadata and defaults to the reference itself. Autograd is not registered: public
    functions wrap the operator in a ``torch.autograd.Function``, which ``torch.func`` can transform.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"aswl::{name}", fake or reference, lib=LIBRARY)
    return getattr(torch.ops.aswl, name).default


def vmap_by(reference: Callable) -> staticmethod:
    """The ``vmap`` of an ``autograd.Function``: the reference's, which is plain PyTorch and differentiable itself."""
    return staticmethod(lambda info, in_dims, *args: (torch.vmap(reference, in_dims)(*args), 0))
