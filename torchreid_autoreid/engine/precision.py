"""Mixed precision: the forward pass in 16 bits, losses and gradients of the parameters in 32."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

__all__ = ["PRECISIONS", "MixedPrecision", "check_precision"]

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_precision(name: str) -> None:
    """Refuses an unknown precision.

    Raises:
        UserError: if there is no such precision.
    """
    if name != "none" and name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}; choose none, {', '.join(PRECISIONS)}")


class MixedPrecision:
    """Runs a network in 16 bits where that is safe, as ``torch.autocast`` decides, and scales the loss for float16.

    Args:
        name: ``none``, ``bfloat16`` or ``float16``.
        device_type: of the network.
        key: of the configuration that sets ``name``, for messages.

    Attributes:
        scaler: keeps small float16 gradients above zero; it does nothing in other precisions.

    Raises:
        UserError: if ``name`` is unknown, or it is ``float16`` and the device is no GPU.

    >>> MixedPrecision("bfloat16", "cpu").forward(torch.nn.Linear(2, 2), torch.zeros(1, 2)).dtype
    torch.float32
    """

    def __init__(self, name: str, device_type: str, key: str = "the precision") -> None:
        check_precision(name)
        if name == "float16" and device_type != "cuda":
            raise UserError(f"float16 needs a GPU, and the network is on the {device_type}; set {key} bfloat16")
        self.name, self.device_type = name, device_type
        self.scaler = torch.amp.GradScaler(device_type, enabled=name == "float16")

    def forward(self, network: Any, images: Tensor, **options: Any) -> Any:
        """The network's outputs, in float32 at least: losses are taken in full precision."""
        context: Any = contextlib.nullcontext()
        if self.name != "none":
            # A context of its own: it keeps the weights that it has converted, and these change between the passes.
            context = torch.autocast(self.device_type, PRECISIONS[self.name])
        with context:
            outputs = network(images, **options)
        return _widened(outputs)


def _widened(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in PRECISIONS.values() else outputs
    return type(outputs)(_widened(output) for output in outputs)
