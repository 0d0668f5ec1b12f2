"""An ONNX file as a feature extractor, run by onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from ..data.images import read_image
from ..errors import UserError, first_line, line_of_the_machine, short
from ..limits import MOST_PIXELS, check_values, is_whole

_IMAGENET = {"norm_mean": (0.485, 0.456, 0.406), "norm_std": (0.229, 0.224, 0.225)}


def is_onnx(path: str | PathLike[str]) -> bool:
    """Whether a file's name says that it is an ONNX file.

    >>> is_onnx("reid.ONNX"), is_onnx("reid.pth")
    (True, False)
    """
    return Path(path).suffix.lower() == ".onnx"


class OnnxExtractor(nn.Module):
    """A network (B, 3, H, W) → (B, D) in an ONNX file.

    Files of ``export`` say the size and the standardisation of their input; of others the size must be in the graph or
    given, and the standardisation is ImageNet's. It runs on the CPU.

    Args:
        path: the file.
        size: height and width in pixels, for a file that leaves them open.

    Attributes:
        height, width: of the input in pixels.
        described: the file's own description of its input, empty for files of others than ``export``.
        preprocess: from a picture, or the path of one, to (3, H, W).

    Raises:
        UserError: onnxruntime is missing, or the file is no such network.
    """

    def __init__(self, path: str | PathLike[str], size: Sequence[int] = ()) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"there is no file {path}; give an ONNX file")
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path} needs onnxruntime; pip install onnxruntime") from None
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            entries = self._session.get_modelmeta().custom_metadata_map
            described: Any = json.loads(entries.get("torchreid_autoreid", "{}"))
            if not isinstance(described, Mapping):
                raise ValueError(f"its description is {short(described)}")
        except Exception as error:  # onnxruntime raises many kinds
            if line_of_the_machine(error):
                raise
            raise UserError(f"{path} is no ONNX file that onnxruntime reads ({first_line(error)})") from None
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
            raise UserError(f"{path} takes {short(found)}; give a network that takes float32 images (B, 3, H, W)")
        self._input = inputs[0].name
        self._batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None
        self.height, self.width = (
            described.get(name, axis if isinstance(axis, int) else given)
            for name, axis, given in zip(("height", "width"), inputs[0].shape[2:], size or (None, None), strict=True)
        )
        if not all(is_whole(size) and size > 0 for size in (self.height, self.width)):
            raise UserError(f"{path} does not say the size of its images; export it with a fixed height and width")
        self.described: Mapping[str, Any] = described
        mean, std = (described.get(name, _IMAGENET[name]) for name in ("norm_mean", "norm_std"))
        try:
            check_values("data", height=self.height, width=self.width, norm_mean=mean, norm_std=std)
            if self.height * self.width > MOST_PIXELS:
                raise UserError(f"{self.height} x {self.width} are more than {MOST_PIXELS} pixels")
        except UserError as error:
            raise UserError(f"{path} describes its input wrongly ({error}); export it anew") from None
        self._transform: Any = transforms.Compose(
            [
                transforms.Resize((self.height, self.width)),
                transforms.ToTensor(),
                transforms.Normalize(list(mean), list(std)),
            ]
        )

    def preprocess(self, image: str | PathLike[str] | Image.Image) -> Tensor:
        """A picture, or the path of one, resized and standardised: (3, H, W)."""
        picture = image.convert("RGB") if isinstance(image, Image.Image) else read_image(Path(image))
        return self._transform(picture)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D) float32; a file of a fixed batch size gets batches of that size."""
        size = self._batch or len(images)
        parts = []
        for batch in images.float().split(size):
            padded = torch.cat([batch, batch[:1].expand(size - len(batch), -1, -1, -1)])
            try:
                output = self._session.run(None, {self._input: padded.numpy()})[0]
            except Exception as error:
                if line_of_the_machine(error):
                    raise
                raise UserError(f"{self.path} fails on a batch of images ({first_line(error)})") from None
            if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiu":
                raise UserError(f"{self.path} gives no array of numbers; give a network (B, 3, H, W) → (B, D)")
            if output.ndim < 2 or len(output) != size:
                raise UserError(f"{self.path} gives {output.shape} for {size} images; give one vector each")
            parts.append(torch.from_numpy(output).float().flatten(1)[: len(batch)])
        return torch.cat(parts)
