"""Registration with torchreid: the only place that touches its private model factory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchreid
from torch import nn

from .errors import UserError
from .genotype import Genotype
from .networks import AutoReIDNetwork, AutoReIDSearchNetwork

__all__ = ["register", "register_model"]

_LOGGER = logging.getLogger(__name__)

ModelFactory = Callable[..., nn.Module]


def _model_factory() -> dict[str, ModelFactory]:
    """torchreid's table of models: it has no public way to add one (PyPI's 0.2.5 and the toolbox's 1.4.0 alike)."""
    factory = vars(torchreid.models).get("__model_factory")
    if not isinstance(factory, dict):
        raise RuntimeError(
            f"torchreid {torchreid.__version__} keeps its models elsewhere; this plugin supports 0.2.5 and 1.4.0"
        )
    return factory


def register_model(
    name: str,
    genotype: str | Path | Genotype = "retrieval",
    channels: int = 64,
    layers: Sequence[int] = (2, 2, 2, 2),
    parts: int = 4,
    drop_path: float = 0.0,
) -> None:
    """Makes the network of a genotype buildable as ``torchreid.models.build_model(name, ...)``.

    Registering the same name again replaces the plugin's own entry, so that a script can be run twice in one process.

    Args:
        name: the new model name.
        genotype: a preset name, the path of a JSON file, or a :class:`Genotype`.
        channels, layers, parts, drop_path: as in :class:`AutoReIDNetwork`.

    Raises:
        UserError: if the genotype cannot be read, an argument is out of range, or the name belongs to one of
            torchreid's own models.

    >>> register_model("autoreid_tiny", channels=4)
    >>> torchreid.models.build_model("autoreid_tiny", num_classes=5, pretrained=False).feature_dim
    128
    """
    cells = genotype if isinstance(genotype, Genotype) else Genotype.load(genotype)

    def build(num_classes: int, loss: str = "softmax", pretrained: bool = False, use_gpu: bool = True) -> nn.Module:
        if pretrained:
            # As torchreid's own models do when they have no weights to offer.
            _LOGGER.warning("no ImageNet weights are published for %s: starting from random weights", name)
        return AutoReIDNetwork(num_classes, loss, cells, channels, layers, parts, drop_path)

    with torch.device("meta"):  # wrong shapes are refused now, at no cost, rather than when the model is built
        build(num_classes=1)
    _register(name, build)


def register() -> None:
    """Registers everything the plugin offers; called on import, safe to call again."""
    for name, channels in (("autoreid", 64), ("autoreid_x0_5", 32), ("autoreid_x0_25", 16)):
        register_model(name, channels=channels)
    _register("autoreid_search", _build_search_network)


def _build_search_network(
    num_classes: int, loss: str = "triplet", pretrained: bool = False, use_gpu: bool = True, **options: Any
) -> nn.Module:
    if pretrained:
        _LOGGER.warning("no ImageNet weights are published for the search network: starting from random weights")
    return AutoReIDSearchNetwork(num_classes, loss, **options)


def _register(name: str, build: ModelFactory) -> None:
    factory = _model_factory()
    if name in factory and not hasattr(factory[name], "is_autoreid"):
        raise UserError(f"torchreid has a model named {name!r} already; choose another name")
    build.is_autoreid = True  # type: ignore[attr-defined]
    factory[name] = build
