"""Image files for the tests of the data."""

import numpy as np
from PIL import Image


def write_images(folder, names, size=(16, 32)):
    """Noise images of the given names."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def market_names(counts, cameras=2, first=1):
    """Market-style names: ``counts[i]`` images of the i-th identity, the cameras in turn."""
    return [
        f"{pid:04d}_c{index % cameras + 1}s1_{index:06d}_00.jpg"
        for pid, count in enumerate(counts, start=first)
        for index in range(count)
    ]


def write_folder_dataset(folder, counts, cameras=2):
    """train/, query/ and gallery/ as FolderDataset expects them; identity 1 of the test half is the only one there."""
    write_images(folder / "train", market_names(counts, cameras))
    write_images(folder / "query", ["0900_c1s1_000000_00.jpg"])
    write_images(folder / "gallery", ["0900_c2s1_000000_00.jpg", "0000_c1s1_000000_00.jpg", "-1_c1s1_000000_00.jpg"])
    return folder
