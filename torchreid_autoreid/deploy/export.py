"""A trained network as a file that needs neither this package nor torchreid: ONNX or TorchScript."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import Checkpoint, load_checkpoint, load_weights
from ..errors import UserError, first_line, line_of_the_machine
from ..files import check_output, write_output
from ..spec import TESTED_WITH, Description
from ..version import __version__
from .fusion import fuse

__all__ = ["FORMATS", "TOLERANCE", "export", "format_of", "read_metadata", "write_onnx"]

FORMATS = ("onnx", "torchscript")
#: ending of a file -> its format
_OF_ENDINGS = {".onnx": "onnx", ".pt": "torchscript", ".pth": "torchscript", ".ts": "torchscript"}
#: the largest difference of a feature value, relative to the largest value, that a file may have
TOLERANCE = 1e-4
_METADATA = "torchreid_autoreid.json"  # in a TorchScript archive


class _Deployed(nn.Module):
    """The feature extractor, with the normalisation of its feature if asked for."""

    def __init__(self, network: nn.Module, normalize: bool) -> None:
        super().__init__()
        self.network, self.normalize = network, normalize

    def forward(self, images: Tensor) -> Tensor:
        features = self.network(images)
        return F.normalize(features, dim=1) if self.normalize else features


def export(
    weights: str | Path | Checkpoint,
    output: str | Path,
    file_format: str = "onnx",
    description: Description | None = None,
    num_classes: int = 1,
    normalize: bool = False,
) -> float:
    """Writes the feature extractor of a checkpoint, after comparing what it computes with PyTorch.

    The file takes ``images`` (B, 3, H, W), float32, any B, standardised by the mean and standard deviation in its
    metadata, and gives ``features`` (B, D). Its metadata (see :func:`read_metadata`) hold genotype, size of the input,
    mean, standard deviation, the settings that the network was tested with and the version of this package.

    Args:
        weights: a checkpoint of ``train.py``, or other weights with their description; what has been read is taken too.
        output: the file to write.
        file_format: ``onnx`` or ``torchscript``.
        description: of the network, where the checkpoint has none.
        num_classes: of the classifier, which is left out of the file.
        normalize: divide each feature by its length.

    Returns:
        The largest difference to PyTorch, relative to the largest feature value, on a batch of one and one of three.

    Raises:
        UserError: if the weights cannot be read or belong to another network, the file cannot be written, a package is
            missing, or the file computes something else.
    """
    if file_format not in FORMATS:
        raise UserError(f"unknown format {file_format!r}; choose {' or '.join(FORMATS)}")
    weights = load_checkpoint(weights, ())
    check_output("", output, {"the weights": weights.path})
    if description is None:
        found = Description.of_checkpoint(weights)
        if found is None:
            raise UserError(
                f"{weights.path} does not say which network it holds; give its configuration (--config-file)"
            )
        description, _ = found
    if min(description.height, description.width) < 16:
        raise UserError(
            f"an input of {description.height} x {description.width} is too small for four stages; "
            "give data.height and data.width of at least 16 pixels"
        )
    network = description.build(num_classes)
    load_weights(network, weights)
    network.eval()
    reference, deployed = (_Deployed(form, normalize).eval() for form in (network, fuse(network)))
    made_with = weights.get("configuration")
    tested = {name: made_with[name] for name in TESTED_WITH if name in made_with} if isinstance(made_with, dict) else {}
    own = {"normalized": normalize, "tested_with": tested, "torchreid_autoreid": __version__}
    described = description.to_dict() | own
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, description.height, description.width, generator=generator)
    with torch.inference_mode():
        if not reference(images).isfinite().all():
            raise UserError(f"the features of {weights.path} are NaN or infinite; export weights that have been tested")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "network"
        try:
            (write_onnx if file_format == "onnx" else _write_torchscript)(deployed, images, made, described)
            difference = _difference(reference, made, file_format, (images[:1], images))
        except ImportError as error:
            if line_of_the_machine(error):
                raise
            raise UserError(
                f"the format {file_format} needs a package that is missing ({error.name}); pip install onnx onnxruntime"
            ) from None
        except Exception as error:  # of what PyTorch cannot trace, some of torchreid's models; runtimes have their own
            if line_of_the_machine(error):
                raise
            raise UserError(
                f"PyTorch cannot write {description.name} as {file_format} ({first_line(error)}); try the other format"
            ) from error
        if not difference <= TOLERANCE:
            raise UserError(
                f"the exported network differs from PyTorch by {difference:.1e} of its largest value (at most "
                f"{TOLERANCE:.0e}); nothing was written: try the other format"
            )
        write_output("", output, lambda name: Path(name).write_bytes(made.read_bytes()))
    return difference


def format_of(output: str | Path) -> str:
    """The format that a file's ending says; without one, ONNX.

    Raises:
        UserError: if the ending is another one.

    >>> format_of("reid.onnx"), format_of("reid.PT"), format_of("reid")
    ('onnx', 'torchscript', 'onnx')
    """
    ending = Path(output).suffix.lower() or ".onnx"
    if ending not in _OF_ENDINGS:
        raise UserError(f"{output} does not end in {', '.join(_OF_ENDINGS)}; say --format {' or '.join(FORMATS)}")
    return _OF_ENDINGS[ending]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What an exported file says about itself.

    Raises:
        UserError: if the file is not one that :func:`export` wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; export.py writes one")
    try:
        if path.read_bytes()[:2] == b"PK":
            extra = {_METADATA: ""}
            _load_torchscript(path, extra)
            return json.loads(extra[_METADATA])
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        entries = session.get_modelmeta().custom_metadata_map
        return json.loads(entries["torchreid_autoreid"])
    except Exception as error:  # the readers raise many kinds
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a network that export.py has written ({reason})") from None


def write_onnx(deployed: nn.Module, images: Tensor, path: Path, described: Mapping[str, Any]) -> None:
    """Writes a network in eval mode; ``described`` goes into the metadata, ``images`` are an example of its input."""
    import onnx

    with warnings.catch_warnings(), _without_graph():
        warnings.simplefilter("ignore")  # the tracer remarks on every constant
        torch.onnx.export(
            deployed,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["features"],
            dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}},
            opset_version=17,
            dynamo=False,  # the other exporter needs one more package, and specialises small batches
        )
    model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = "torchreid_autoreid", json.dumps(described)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


@contextlib.contextmanager
def _without_graph() -> Iterator[None]:
    """PyTorch prints the whole graph of what it cannot write, and its switch for that does not switch (2.14)."""
    log = getattr(torch._C, "_jit_onnx_log", None)
    if log is None:
        yield
        return
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def _write_torchscript(deployed: nn.Module, images: Tensor, path: Path, described: Mapping[str, Any]) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(deployed, images, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={_METADATA: json.dumps(described)})


def _load_torchscript(path: Path, extra: dict[str, str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch would rather have its own new format
        return torch.jit.load(str(path), _extra_files=extra)


def _difference(reference: nn.Module, path: Path, file_format: str, batches: Iterable[Tensor]) -> float:
    """The largest difference of features to PyTorch's in any batch, relative to the largest value of that batch."""
    exported = _runtime(path) if file_format == "onnx" else _load_torchscript(path, {})
    differences = []
    with torch.no_grad():
        for images in batches:
            expected, found = reference(images), exported(images)
            differences.append(float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)))
    return float(np.max(differences))  # NaN if one of them is


def _runtime(path: Path) -> Callable[[Tensor], Tensor]:
    """Runs an ONNX file in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(np.asarray(session.run(["features"], {"images": images.numpy()})[0]))
