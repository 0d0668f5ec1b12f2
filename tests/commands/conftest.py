"""Makes the module beside this file importable, and brings its server."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from forks import Server


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running
