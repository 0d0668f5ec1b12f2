"""For tools that know no pyproject.toml, where the package is described."""

from setuptools import setup

setup()
