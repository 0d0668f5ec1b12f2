"""Registration with torchreid: the only place that touches its private model factory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torchreid
from torch import nn

from .checkpoint import load_weights
from .errors import UserError, short
from .genotype import Genotype
from .space.networks import AutoReIDNetwork, AutoReIDSearchNetwork

__all__ = ["PRESETS", "PRETRAINED_FOLDER", "build_model", "load_pretrained", "register", "register_model"]

#: name -> channels of the authors' retrieval cells
PRESETS = {"autoreid": 64, "autoreid_x0_5": 32, "autoreid_x0_25": 16}
#: environment variable: the folder with ImageNet weights, NAME.pth each
PRETRAINED_FOLDER = "TORCHREID_AUTOREID_PRETRAINED"

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
    pretrained_weights: str | Path = "",
    last_norm: bool = True,
) -> None:
    """Makes the network of a genotype buildable as ``torchreid.models.build_model(name, ...)``.

    ``build_model(name, ..., pretrained=True)`` loads ``pretrained_weights``, or ``NAME.pth`` from the folder that the
    environment variable ``TORCHREID_AUTOREID_PRETRAINED`` names (``autoreid pretrain`` makes such files).
    Without either it says so and starts from random weights, as torchreid's own models do.

    Registering the same name again replaces the plugin's own entry, so that a script can be run twice in one process.

    Args:
        name: the new model name.
        genotype: a preset name, the path of a JSON file, or a :class:`Genotype`.
        channels, layers, parts, drop_path, last_norm: as in :class:`AutoReIDNetwork`.
        pretrained_weights: a file with ImageNet weights of this network.

    Raises:
        UserError: if the genotype cannot be read, an argument is out of range, or the name belongs to one of
            torchreid's own models.

    >>> register_model("autoreid_tiny", channels=4)
    >>> torchreid.models.build_model("autoreid_tiny", num_classes=5, pretrained=False).feature_dim
    128
    """
    _check_name(name)
    cells = genotype if isinstance(genotype, Genotype) else Genotype.load(genotype)

    def build(num_classes: int, loss: str = "softmax", pretrained: bool = False, use_gpu: bool = True) -> nn.Module:
        model = AutoReIDNetwork(num_classes, loss, cells, channels, layers, parts, drop_path, last_norm=last_norm)
        if pretrained:
            load_pretrained(model, name, pretrained_weights)
        return model

    with torch.device("meta"):  # wrong shapes are refused now, at no cost, rather than when the model is built
        build(num_classes=1)
    _register(name, build)


def load_pretrained(model: nn.Module, name: str, path: str | Path = "") -> None:
    """Loads ImageNet weights into a network, all but its classifier.

    Args:
        model: the network.
        name: its model name.
        path: the file; else the configured folder is looked into, and without one the weights stay random.

    Raises:
        UserError: if the file is missing or belongs to another network.
    """
    folder = os.environ.get(PRETRAINED_FOLDER)
    if not path and folder:
        path = Path(folder) / f"{name}.pth"
    if not path:
        _LOGGER.warning("no ImageNet weights are published for %s: starting from random weights", name)
        return
    load_weights(model, path)
    _LOGGER.info("%s starts from the ImageNet weights in %s", name, path)


def build_model(name: str, num_classes: int, loss: str = "softmax", pretrained: bool = False) -> nn.Module:
    """``torchreid.models.build_model`` with its errors in one line.

    Raises:
        UserError: if no such model is registered, or its ImageNet weights cannot be downloaded.
    """
    _check_name(name)
    names = list(_model_factory())
    if name not in names:
        near = get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(sorted(names))}"
        raise UserError(f"model.name: there is no model {name!r}; {hint}")
    try:
        return torchreid.models.build_model(name, num_classes, loss, pretrained=pretrained, use_gpu=False)
    except OSError as error:  # no network, or no room
        raise UserError(
            f"cannot get the ImageNet weights of {name} ({error}); set model.pretrained false, or model.load_weights"
        ) from None


def register() -> None:
    """Registers everything the plugin offers; called when this module is imported, safe to call again."""
    for name, channels in PRESETS.items():
        register_model(name, channels=channels)
    _register("autoreid_search", _build_search_network)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise UserError(f"the name of a model must be a text, not {short(name)}")


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


register()
