"""The candidate operations, a file each, and their table.

Each is the DARTS operation of that name (Liu et al., ICLR 2019, appendix A.1.1), or Auto-ReID's part-aware one: ReLU,
convolution, batch norm for what has weights; pooling followed by batch norm for what has none.
"""

from __future__ import annotations

from torch import nn

from ...genotype import OPERATION_NAMES
from .none import NoneOperation
from .operation import Operation
from .part_aware import PartAwareOperation
from .pooling import PoolingOperation
from .separable import DilatedOperation, SeparableOperation
from .skip import SkipOperation

__all__ = ["OPERATIONS", "Operation", "build_operation"]

#: name -> operation; the names, and the spaces that they are in, are in genotype.py
OPERATIONS: dict[str, Operation] = {
    "part_aware": PartAwareOperation(),
    "max_pool_3x3": PoolingOperation(lambda stride: nn.MaxPool2d(3, stride, 1)),
    "avg_pool_3x3": PoolingOperation(lambda stride: nn.AvgPool2d(3, stride, 1, count_include_pad=False)),
    "sep_conv_3x3": SeparableOperation(),
    "dil_conv_3x3": DilatedOperation(),
    "none": NoneOperation(),
    "skip_connect": SkipOperation(),
}
assert tuple(OPERATIONS) == OPERATION_NAMES


def build_operation(name: str, channels: int, stride: int = 1, parts: int = 4, affine: bool = True) -> nn.Module:
    """The plain form of an operation.

    >>> build_operation("skip_connect", 8)
    Identity()
    """
    return OPERATIONS[name].build(channels, stride, parts, affine)
