"""Makes the module beside this file importable, and the datasets that several tests read."""

import sys
from pathlib import Path

import pytest

from torchreid_autoreid.data import SyntheticPedestrians

sys.path.insert(0, str(Path(__file__).parent))

from image_files import write_folder_dataset


@pytest.fixture(scope="session")
def pedestrians_root(tmp_path_factory):
    """A root in which the pedestrians are drawn."""
    root = tmp_path_factory.mktemp("pedestrians")
    SyntheticPedestrians(str(root), verbose=False)
    return root


@pytest.fixture(scope="session")
def images_root(tmp_path_factory):
    """Twelve identities of 2 to 9 images by two cameras, and one of a single image."""
    return write_folder_dataset(tmp_path_factory.mktemp("folder"), [2 + i % 8 for i in range(12)] + [1])
