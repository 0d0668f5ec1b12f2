"""One reader for all pictures: depth, rotation, colour models, formats, and what is refused."""

import os
import zlib

import numpy as np
import pytest
import torch
import torchreid
from PIL import Image
from torchvision import transforms

from torchreid_autoreid.data import read_image
from torchreid_autoreid.data.images import MOST_PIXELS, SUFFIXES
from torchreid_autoreid.data.loader import ClassifiedImages, ReidImages
from torchreid_autoreid.errors import UserError

ORIENTATION = 0x0112


def ramp(dtype=np.uint8, scale=1):
    return (np.arange(24, dtype=np.int64).reshape(6, 4) * 10 * scale).astype(dtype)


def pixels(path):
    return np.asarray(read_image(path))


@pytest.mark.parametrize("scale", [256, 257])  # both ways in which 8 bits are written as 16
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bits_is_scaled(tmp_path, name, scale):
    Image.fromarray(ramp(np.uint16, scale)).save(tmp_path / name)
    assert np.array_equal(pixels(tmp_path / name), np.repeat(ramp()[:, :, None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "grey16.png"])
def test_the_noted_rotation_is_applied_whatever_the_depth(tmp_path, name, orientation):
    upright = ramp(np.uint16, 257) if "16" in name else np.stack([ramp()] * 3, axis=2)
    back = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1)}
    back |= {6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a, -1)}
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(back.get(orientation, lambda a: a)(upright))
    Image.fromarray(stored).save(tmp_path / name, exif=exif, **({"lossless": True} if "webp" in name else {}))
    assert np.array_equal(pixels(tmp_path / name), np.stack([ramp()] * 3, axis=2))


def test_a_rotation_that_cannot_be_read_turns_nothing(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    assert pixels(tmp_path / "a.jpg").shape == (6, 4, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_ordinary_colour_models_are_those_of_pillow(tmp_path, mode, recwarn):
    picture = Image.fromarray(np.stack([ramp(), ramp().T.reshape(6, 4), ramp()[::-1]], axis=2)).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "PA") else "a.png")
    picture.save(path)
    with Image.open(path) as again:
        assert np.array_equal(pixels(path), np.asarray(again.convert("RGB")))
    assert not recwarn


def test_a_palette_with_transparent_entries_gives_no_warning(tmp_path, recwarn):
    Image.fromarray(ramp()).convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert np.array_equal(pixels(tmp_path / "a.png")[:, :, 0], ramp())
    assert not recwarn


@pytest.mark.parametrize(("dtype", "word"), [(np.float32, "floating point"), (np.int32, "32-bit grey")])
def test_pixels_without_a_range_are_refused_by_name(tmp_path, dtype, word):
    path = tmp_path / "a.tif"
    Image.fromarray(ramp().astype(dtype)).save(path)
    with pytest.raises(UserError, match=f"cannot read the image {path} .*{word}.*save it with 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PDF", "ICO"])
def test_only_the_formats_of_photos_are_read(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, format=kind)
    with pytest.raises(UserError, match=f"cannot read the image {path} "):
        read_image(path)


def huge_png(path, side):
    """A PNG of a few kilobytes that unpacks to side x side pixels."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = side.to_bytes(4, "big")
    rows = zlib.compress(b"\0" * (side * (1 + side)), 9)
    head = chunk(b"IHDR", size + size + b"\x08\0\0\0\0")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [8200, 13000, 20000])  # Pillow's own limits lie above and below
def test_more_pixels_than_a_photo_has_are_not_unpacked(tmp_path, side, monkeypatch):
    path = tmp_path / "a.png"
    huge_png(path, 8)
    data = bytearray(path.read_bytes())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(UserError, match=f"{path} .*more than|and at most {MOST_PIXELS} are read"):
        read_image(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path, "/dev/zero"):
        with pytest.raises(UserError, match="it is no ordinary file"):
            read_image(path)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\xff\xd8\xff\xe0 torn", b"\x89PNG\r\n\x1a\n torn", b"II*\0 torn", b"BM"]
)
def test_what_is_no_picture_gets_one_line(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(UserError, match=r"cannot read the image .*; replace the file or remove it") as caught:
        read_image(tmp_path / "a.jpg")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere.jpg \(No such file or directory\)"):
        read_image(tmp_path / "nowhere.jpg")


def test_every_ending_is_of_a_format_that_is_read(tmp_path):
    for suffix in SUFFIXES:
        Image.new("L" if suffix == ".pgm" else "RGB", (4, 6)).save(tmp_path / f"a{suffix}")
        assert pixels(tmp_path / f"a{suffix}").shape == (6, 4, 3)


def test_training_pretraining_and_torchreids_extractor_read_alike(tmp_path, caplog):
    """A 16-bit photo that a camera held upright stored sideways."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "class" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (64, 32), dtype=np.uint16)).save(path, exif=exif)
    transform = transforms.Compose([transforms.Resize((64, 32)), transforms.ToTensor()])
    trained = ReidImages([(str(path), 0, 0, 0)], transform)[0]["img"]
    (path.parent / "._a.png").write_bytes(b"what macOS leaves")
    (path.parent / "b.gif").write_bytes(b"GIF89a")
    (item,) = ClassifiedImages(tmp_path, transform)
    assert f"left out 1 .gif files in {tmp_path} (such as class/b.gif)" in caplog.text
    pretrained, label = item["img"], item["pid"]
    assert torch.equal(trained, pretrained)
    assert label == 0
    extractor = torchreid.utils.FeatureExtractor(
        "autoreid_x0_25", image_size=(64, 32), pixel_norm=False, device="cpu", verbose=False
    )
    expected = extractor(trained[None])
    array = np.asarray(read_image(path))
    for given in (str(path), [str(path)], path, array, [array]):
        assert torch.equal(extractor(given), expected)
    assert 0.3 < float(trained.mean()) < 0.7  # not white


def test_a_data_root_that_has_gone_away_is_told(tmp_path):
    with pytest.raises(UserError, match=r"its folder .*/gone is gone; when it is back, go on with --resume"):
        read_image(tmp_path / "gone" / "a.jpg")
