"""Every test starts from the same random numbers, on one thread: tiny networks gain nothing from more."""

import os

# Before PyTorch reads it, and for the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import torchreid_autoreid  # noqa: F401  registers models and datasets

collect_ignore = ["fuzz/run.py"]  # needs atheris, and is run by hand

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parent))  # for what tests share
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _no_drawings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Engines do not draw, unless a test asks for ``drawings``."""
    if request.path.parent.name not in ("engine", "parallel"):
        yield
        return
    import pictures

    pictures.draw_nothing()
    yield
    pictures.draw_again()


@pytest.fixture
def drawings(_no_drawings: None) -> Iterator[None]:
    """Engines draw in this test."""
    import pictures

    pictures.draw_again()
    yield
    pictures.draw_nothing()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take many minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes many minutes; run with --long"))
