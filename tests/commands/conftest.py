"""Brings the process that starts commands."""

import forks
import pytest


@pytest.fixture(scope="session")
def server():
    return forks.server()
