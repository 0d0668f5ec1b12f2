"""A dataset of a few kilobytes for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_people(folder: Path, identities: int = 8, images: int = 8) -> Path:
    """Identities, each a colour, with noisy images from two cameras, in ``folder/train``, ``query`` and ``gallery``."""
    rng = np.random.default_rng(0)
    for part in ("train", "query", "gallery"):
        (folder / part).mkdir(parents=True)
        for pid in range(1, identities + 1):
            colour = rng.integers(40, 215, size=3)
            for index in range(images):
                pixels = (colour + rng.normal(0, 25, size=(40, 20, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / f"{pid:04d}_c{1 + index % 2}s1_{index:06d}_00.jpg")
    return folder
