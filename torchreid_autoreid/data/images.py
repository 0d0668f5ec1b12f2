"""Reads a picture, in the same way for training, testing, pre-training, ranked results and feature extraction."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torchreid
from PIL import Image, ImageOps

from ..errors import UserError, line_of_the_machine

__all__ = ["FORMATS", "MOST_PIXELS", "SUFFIXES", "read_image", "shown", "small_jpeg", "use_in_feature_extractor"]

#: formats of photo sets, by Pillow's names. Not those whose reading starts another program, as EPS does.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
#: endings of their files, in lower case
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: of one picture; the largest of ImageNet has 61 million. A file of 20 kB can claim any number.
MOST_PIXELS = 1 << 26

#: errors of the machine, which no other file would mend
_NOT_THE_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """A picture as 8-bit RGB, upright.

    Grey of 16 bits keeps its high byte, as 16-bit colour does in Pillow. The rotation that a camera notes beside the
    pixels (EXIF) is applied. Transparency is dropped, and the colours below it are taken, as in torchreid.

    Args:
        path: a file in one of :data:`FORMATS`, whatever its ending.

    Raises:
        UserError: if the file is missing, no ordinary file, torn, in another format, larger than :data:`MOST_PIXELS`,
            or has pixels without a known range (32-bit grey, floating point).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "grey.png"
    >>> Image.fromarray(np.full((4, 2), 40000, np.uint16)).save(path)
    >>> read_image(path).getpixel((0, 0))
    (156, 156, 156)
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise ValueError("it is no ordinary file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow remarks on odd metadata
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise ValueError(f"it has {width} x {height} pixels, and at most {MOST_PIXELS} are read")
                image.load()
                with contextlib.suppress(Exception):  # metadata that cannot be read turn nothing
                    ImageOps.exif_transpose(image, in_place=True)
                return _as_rgb(image)
    except (MemoryError, Image.DecompressionBombError) as error:
        if isinstance(error, MemoryError):
            raise
        raise _unreadable(path, f"it has more than {MOST_PIXELS} pixels") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILES:
            error.filename = shown(path)  # a read names none
            raise UserError(line_of_the_machine(error)) from None
        raise _unreadable(path, _reason(error, path)) from None


def small_jpeg(path: str | os.PathLike[str]) -> bytes:
    """A picture for a page: a JPEG of at most 64 x 128 pixels.

    Raises:
        UserError: as :func:`read_image`.
    """
    image = read_image(path)
    image.thumbnail((64, 128))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _as_rgb(image: Image.Image) -> Image.Image:
    # Older Pillow calls 16-bit grey of these formats "I"; converting either to RGB clips it to white.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit grey" if image.mode == "I" else "floating point"
        raise ValueError(f"its pixels are {kind}, whose range the file does not tell; save it with 8 or 16 bits")
    if image.mode == "P":  # its transparency may be a list of bytes, of which Pillow would complain
        image = image.convert("RGBA")
    return image.convert("RGB")


def _unreadable(path: str | os.PathLike[str], reason: str) -> UserError:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        return UserError(
            f"cannot read the image {shown(path)}: its folder {shown(folder)} is gone; when it is back, go on with "
            "--resume"
        )
    return UserError(f"cannot read the image {shown(path)} ({reason}); replace the file or remove it")


def _reason(error: Exception, path: str | os.PathLike[str]) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()).replace(f" {os.fspath(path)!r}", "")[:160]
    return text or type(error).__name__


def shown(path: str | os.PathLike[str]) -> str:
    r"""A path for a message: bytes that are no UTF-8 as escapes.

    >>> shown("caf\udce9.jpg")
    'caf\\udce9.jpg'
    """
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def use_in_feature_extractor() -> None:
    """Makes torchreid's ``FeatureExtractor`` read paths by :func:`read_image`; safe to call again.

    It opens them itself, so that 16-bit grey would be white, and a picture with a noted rotation another one than in
    training and testing. Arrays and tensors go to it as they are.
    """
    extractor = torchreid.utils.FeatureExtractor
    call = extractor.__call__
    if hasattr(call, "reads_images"):
        return

    @functools.wraps(call)
    def reading(self: Any, input: Any) -> Any:
        one = isinstance(input, str | Path)
        items = [input] if one else input
        if isinstance(items, list):
            items = [np.asarray(read_image(item)) if isinstance(item, str | Path) else item for item in items]
        return call(self, items)

    reading.reads_images = True  # type: ignore[attr-defined]
    extractor.__call__ = reading
