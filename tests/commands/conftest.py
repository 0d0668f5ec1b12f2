"""Makes the module beside this file importable, and brings its server."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import forks


@pytest.fixture(scope="session")
def server():
    return forks.server()
