"""Some elements of a product of two dense matrices: what a restricted weight gradient needs."""

from aswl_kernels import reference
from aswl_kernels._library import define

FEW = 0.25  # share of the elements up to which they cost less one by one than all of the product

# ``left`` [batch, out], ``right`` [batch, in], of one dtype; ``columns``, ``offsets``: positions as of a packed [out, in].
# Returns [out, in]: left.T @ right at the positions, zeros elsewhere. Sums are in fp32 or wider.
sampled_product_op = define(
    "sampled_product(Tensor left, Tensor right, Tensor columns, Tensor offsets) -> Tensor",
    reference.sampled_product,
    lambda left, right, columns, offsets: left.new_empty(left.shape[1], right.shape[1]),
)
