"""States of optimisers, schedulers and random generators, given back to a run that goes on."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import short

__all__ = ["load_like", "load_optimizer", "random_state", "restore_random_state"]


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads the state of an optimiser of the same kind over parameters of the same shapes.

    PyTorch takes whatever it is given, and fails at the next step.

    Raises:
        ValueError: if the state is of another optimiser.
    """
    _check_like(optimizer.state_dict()["param_groups"], state["param_groups"], "param_groups")
    optimizer.load_state_dict(dict(state))
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")


def load_like(module: Any, state: Mapping[str, Any]) -> None:
    """Loads the state of a scheduler or a scaler of the same kind.

    PyTorch would make any key of it an attribute.

    Raises:
        ValueError: if the state is of another kind.
    """
    _check_like(module.state_dict(), state, "state")
    module.load_state_dict(dict(state))


def _check_like(own: Any, given: Any, name: str) -> None:
    """Keys, lengths and types are those of our own; numbers are finite."""
    if isinstance(own, int | float) and not isinstance(own, bool):
        if not isinstance(given, int | float) or not math.isfinite(given):
            raise ValueError(f"{name} is {short(given)}, not a number")
    elif own is not None and given is not None and type(own) is not type(given):
        raise ValueError(f"{name} is {short(given)}")
    elif isinstance(own, dict) and not isinstance(own, Counter):  # a Counter's keys are data
        if own.keys() != given.keys():
            raise ValueError(f"{name} has other keys: {short(sorted(own.keys() ^ given.keys(), key=str))}")
        for key in own:
            _check_like(own[key], given[key], f"{name}.{key}")
    elif isinstance(own, list | tuple):
        if len(own) != len(given):
            raise ValueError(f"{name} has {len(given)} items, here {len(own)}")
        for place, (one, other) in enumerate(zip(own, given, strict=True)):
            _check_like(one, other, f"{name}[{place}]")


def random_state() -> dict[str, Any]:
    """The states of all random generators, as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of :func:`random_state`; generators of devices that are absent here are left alone."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for index, generator in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)
