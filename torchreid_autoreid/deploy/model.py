"""The network that a checkpoint holds, ready to be used from Python."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from ..checkpoint import load_checkpoint, load_weights
from ..data.images import read_image
from ..errors import UserError, short
from ..genotype import Genotype
from ..spec import Description
from .fusion import fuse

__all__ = ["FeatureExtractor", "load_model"]


def load_model(path: str | PathLike[str], device: str | torch.device = "cpu") -> FeatureExtractor:
    """The network of a checkpoint of ``train`` or ``pretrain``, in eval mode: what ``evaluate`` measures.

    Args:
        path: the file; for weights of other programs see
            :func:`torchreid.models.build_model` and :func:`~torchreid_autoreid.checkpoint.load_weights`.
        device: where the network goes.

    Raises:
        UserError: if the file cannot be read or does not say which network it holds, or there is no such device.

    Example::

        model = load_model("log/train/checkpoint-best.pth")
        features = model(torch.stack([model.preprocess(path) for path in paths]))  # (B, model.feature_dim)
    """
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise UserError(f"unknown device {short(device)}; choose 'cpu' or 'cuda'") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r} asked for, but torch sees {torch.cuda.device_count()} GPUs; use 'cpu'")
    checkpoint = load_checkpoint(path, ())
    path = checkpoint.path
    described = Description.of_checkpoint(checkpoint)
    if described is None:
        raise UserError(
            f"{path} does not say which network it holds; use a checkpoint of train, or build the network and load the "
            "weights into it"
        )
    description, num_classes = described
    network = description.build(num_classes)
    load_weights(network, checkpoint)
    made_with = checkpoint.get("configuration", {})
    if not isinstance(made_with, Mapping):
        raise UserError(f"{path} describes its configuration wrongly: {short(made_with)}")
    options = [made_with.get(name, False) for name in ("recipe.flip_test", "test.normalize_feature")]
    if not all(isinstance(option, bool) for option in options):
        raise UserError(
            f"{path} describes its configuration wrongly: flip_test and normalize_feature are {short(options)}"
        )
    return FeatureExtractor(network.eval(), description, *options).to(place)


class FeatureExtractor(nn.Module):
    """A network with all that testing does around it.

    Attributes:
        description: of the network and its input.
        genotype: its cells; ``None`` for torchreid's own models.
        feature_dim: D.
        preprocess: from a picture, or the path of one, to what the network takes, (3, H, W).

    Shapes: ``(B, 3, H, W)`` preprocessed images to ``(B, D)`` float32 features.
    """

    def __init__(self, network: nn.Module, description: Description, flip_test: bool, normalize: bool) -> None:
        super().__init__()
        self.description, self.flip_test, self.normalize = description, flip_test, normalize
        self.network = fuse(network)  # the same features, sooner
        self.genotype: Genotype | None = description.genotype
        with torch.inference_mode():
            example = torch.zeros(1, 3, description.height, description.width)
            self.feature_dim = int(self.network(example).shape[1])
        self._transform: Any = transforms.Compose(
            [
                transforms.Resize((description.height, description.width)),
                transforms.ToTensor(),
                transforms.Normalize(list(description.norm_mean), list(description.norm_std)),
            ]
        )
        self.eval()

    def preprocess(self, image: str | PathLike[str] | Image.Image) -> Tensor:
        """A picture, or the path of one, resized and standardised: (3, H, W).

        Raises:
            UserError: if the path cannot be read as a picture.
        """
        picture = image.convert("RGB") if isinstance(image, Image.Image) else read_image(Path(image))
        return self._transform(picture)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        features = self.network(images).float()
        if self.flip_test:
            features = (features + self.network(images.flip(3)).float()) / 2
        return F.normalize(features, dim=1) if self.normalize else features

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Only testing is possible.

        Raises:
            UserError: if training is asked for.
        """
        if mode:
            raise UserError("this network is for testing; train resumes from a checkpoint with --resume")
        return super().train(False)
