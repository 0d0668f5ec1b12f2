"""What a checkpoint says about its network, so that testing and export need nothing but the file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import Checkpoint, load_checkpoint
from .errors import UserError, short
from .genotype import Genotype
from .limits import MOST_PIXELS, check_choice, check_values
from .plugin import PRESETS, build_model, load_pretrained
from .space.neck import FEATURES, add_neck
from .space.networks import AutoReIDNetwork

__all__ = ["TESTED_WITH", "Description"]

#: keys that decide the figures of a network besides the network itself
TESTED_WITH = ("recipe.flip_test", "test.dist_metric", "test.normalize_feature", "test.rerank")


@dataclass(frozen=True)
class Description:
    """A network and its input, as plain data.

    Attributes:
        name: ``model.name``: ``autoreid`` and its sizes, or any other model of torchreid.
        loss: ``softmax`` or ``triplet``: what the network returns in training.
        height, width: of the input, in pixels.
        norm_mean, norm_std: of the three colour channels.
        neck: ``none``, or where the feature of testing is taken: ``before`` or ``after`` the batch-norm neck.
        genotype, channels, layers, parts, last_stride, last_norm: of our own network; ``None`` for others.
    """

    name: str
    loss: str
    height: int
    width: int
    norm_mean: Sequence[float]
    norm_std: Sequence[float]
    neck: str = "none"
    genotype: Genotype | None = None
    channels: int | None = None
    layers: Sequence[int] | None = None
    parts: int | None = None
    last_stride: int | None = None
    last_norm: bool | None = None

    @classmethod
    def of_config(cls, cfg: Any, genotype: Genotype | None = None) -> Description:
        """The network that a configuration asks for.

        Args:
            cfg: the configuration.
            genotype: instead of the one that it names.

        Raises:
            UserError: if the genotype cannot be read, or the name's size and ``autoreid.channels`` contradict.
        """
        common = {
            "name": cfg.model.name,
            "loss": cfg.loss.name,
            "height": cfg.data.height,
            "width": cfg.data.width,
            "norm_mean": list(cfg.data.norm_mean),
            "norm_std": list(cfg.data.norm_std),
            "neck": cfg.recipe.neck,
        }
        if cfg.model.name not in PRESETS:
            return cls(**common)
        own, channels = cfg.autoreid, PRESETS[cfg.model.name]
        if cfg.model.name != "autoreid" and own.channels not in (channels, PRESETS["autoreid"]):
            raise UserError(
                f"autoreid.channels {own.channels} contradicts model.name {cfg.model.name}, which has {channels}; "
                "set model.name autoreid"
            )
        return cls(
            **common,
            genotype=genotype or Genotype.load(own.genotype),
            channels=own.channels if cfg.model.name == "autoreid" else channels,
            layers=list(own.layers),
            parts=own.parts,
            last_stride=own.last_stride,
            last_norm=own.last_norm,
        )

    @classmethod
    def from_dict(cls, value: Any, path: str | Path) -> Description:
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: if the value is not a description; ``path`` is named.
        """
        try:
            values = dict(value)
            if values.get("genotype") is not None:
                values["genotype"] = Genotype.from_dict(values["genotype"])
            found = cls(**values)
            found._check()
        except UserError as error:
            raise UserError(f"{path} describes its network wrongly: {error}") from None
        except (TypeError, ValueError):
            raise UserError(f"{path} does not describe its network; use a checkpoint of train.py") from None
        return found

    @classmethod
    def of_checkpoint(cls, path: str | Path | Checkpoint) -> tuple[Description, int] | None:
        """The network that a checkpoint of ``train.py`` or ``pretrain.py`` describes, and its number of classes.

        Args:
            path: the file, or what has been read of it.

        Returns:
            ``None`` if the file is of another kind, a state dict for instance.

        Raises:
            UserError: if the file is missing, torn or describes its network wrongly.
        """
        state = load_checkpoint(path, ())
        if "network" not in state:
            return None
        path = state.path
        values = dict(state["network"]) if isinstance(state["network"], Mapping) else {}
        num_classes = values.pop("num_classes", None)
        if type(num_classes) is not int or not 1 <= num_classes <= 1 << 24:
            raise UserError(f"{path} describes its network wrongly: its num_classes is {short(num_classes)}")
        found = cls.from_dict(values, path)
        if num_classes > Path(path).stat().st_size or found._parameters(num_classes) > Path(path).stat().st_size:
            raise UserError(f"{path} describes a network of more parameters than it has bytes; use another checkpoint")
        return found, num_classes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and for a checkpoint."""
        return asdict(self) | {"genotype": self.genotype.to_dict() if self.genotype else None}

    def build(
        self, num_classes: int, drop_path: float = 0.0, auxiliary: bool = False, pretrained: str | bool = False
    ) -> nn.Module:
        """The network, in training mode.

        Args:
            num_classes: training identities.
            drop_path, auxiliary: of our own network, see :class:`~torchreid_autoreid.space.networks.AutoReIDNetwork`.
            pretrained: start from ImageNet weights: torchreid's own for its models; for ours the path of a file, or
                ``True`` for the one that is configured.

        Raises:
            UserError: if the name is unknown, an argument is out of range, or weights cannot be had.
        """
        if self.genotype is None:
            model = build_model(self.name, num_classes, self.loss, bool(pretrained))
        else:
            assert self.channels is not None
            assert self.layers is not None
            assert self.parts is not None
            assert self.last_stride is not None
            assert self.last_norm is not None
            model = AutoReIDNetwork(
                num_classes,
                self.loss,
                self.genotype,
                self.channels,
                self.layers,
                self.parts,
                drop_path,
                self.last_stride,
                auxiliary,
                self.last_norm,
            )
            if pretrained:
                load_pretrained(model, self.name, pretrained if isinstance(pretrained, str) else "")
        return add_neck(model, self.neck)

    def _parameters(self, num_classes: int) -> int:
        """How many parameters the network has, counted without memory for them."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.build(num_classes).parameters())

    def _check(self) -> None:
        own: Mapping[str, type] = {"channels": int, "layers": list, "parts": int, "last_stride": int, "last_norm": bool}
        wanted = {"name": str, "loss": str, "height": int, "width": int, "norm_mean": list, "norm_std": list}
        for name, kind in {**wanted, **(own if self.genotype else {})}.items():
            if type(getattr(self, name)) is not kind:  # True is an int
                raise UserError(f"its {name} is {short(getattr(self, name))}")
        for name, kinds in {"norm_mean": (int, float), "norm_std": (int, float), "layers": (int,)}.items():
            values = getattr(self, name) or []
            if not all(type(value) in kinds and math.isfinite(value) for value in values):
                raise UserError(f"its {name} is {short(values)}")
        check_values("data", height=self.height, width=self.width, norm_mean=self.norm_mean, norm_std=self.norm_std)
        if self.height * self.width > MOST_PIXELS:
            raise UserError(f"its input is {self.height} x {self.width}, with at most {MOST_PIXELS} pixels")
        if not isinstance(self.neck, str) or self.neck not in FEATURES:
            raise UserError(f"its neck is {short(self.neck)}")
        if self.genotype:
            check_values("autoreid", channels=self.channels, layers=self.layers, parts=self.parts)
            check_choice("autoreid.last_stride", self.last_stride, "last_stride")
