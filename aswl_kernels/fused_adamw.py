"""AdamW and what the method wants of the same weights and gradients, in one pass."""

from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import want
from aswl_kernels._fused import check_lists, check_number, fake, parted
from aswl_kernels._library import define
from aswl_kernels._triton import serve


def fused_adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[float] | list[Tensor],
    thresholds: list[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    maximize: bool = False,
    pruned_decay: float = 1.0,
    pruned_gradient: float | Tensor = 1.0,
    band: float = 0.15,
    grad_scale: Tensor | None = None,
    copies: list[Tensor] | None = None,
) -> Tensor:
    """One step of ``torch.optim.AdamW`` on L weights in place, by masked gradients, and the sums that steer the method.

    ``weights``, ``grads``, ``exp_avgs``, ``exp_avg_sqs``: L floating tensors each, alike in shape, dtype and device;
    ``steps``: L numbers, 1 for a weight's first step, or L tensors of them, which are where ``lr`` may be. The other
    arguments and the result are those of :func:`aswl_kernels.fused_sgd_`. Raises ``ValueError`` on another dtype,
    shape, device or number.
    """
    op = "fused_adamw_"
    alike = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    check_lists(op, weights, thresholds, copies, grad_scale, lr, pruned_gradient, pruned_decay, band, **alike)
    step_tensors = [step for step in steps if isinstance(step, Tensor)]
    for step in step_tensors:
        check_number(op, "step", step, weights)
    numbers = [] if step_tensors else steps
    fits = len(step_tensors or numbers) == len(weights) and all(step >= 1 for step in numbers)
    want(fits, op, f"{len(weights)} steps from 1 on, numbers or tensors", steps)
    (lr, lr_tensor), (pruned_gradient, pruned_gradient_tensor) = parted(lr), parted(pruned_gradient)
    return _fused_adamw(
        weights,
        grads,
        exp_avgs,
        exp_avg_sqs,
        numbers,
        step_tensors,
        thresholds,
        copies or [],
        grad_scale,
        lr,
        *betas,
        eps,
        weight_decay,
        maximize,
        pruned_decay,
        pruned_gradient,
        band,
        lr_tensor,
        pruned_gradient_tensor,
    )


_fused_adamw = define(
    "fused_adamw_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, float[] steps, "
    "Tensor[] step_tensors, Tensor[] thresholds, Tensor(d!)[] copies, Tensor? grad_scale, float lr, float beta1, "
    "float beta2, float eps, float weight_decay, bool maximize, float pruned_decay, float pruned_gradient, float band, "
    "Tensor? lr_tensor=None, Tensor? pruned_gradient_tensor=None) -> Tensor",
    reference.fused_adamw_,
    fake,
)
serve("fused_adamw_", "fused_adamw_triton", reference.fused_adamw_)
