"""Installs the plugin: ``pip install -e .`` (add ``[test]`` for the tests)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# PyPI's torchreid 0.2.5 declares no dependencies. These are what it imports: imageio to unpack CUHK03,
# tensorboard through PyTorch.
TORCHREID_IMPORTS = ["opencv-python-headless", "gdown", "h5py", "imageio", "matplotlib", "Pillow", "six", "tensorboard"]

# Meta's own wheel of faiss runs CPU indexes without a GPU; it exists for Linux on x86-64 only.
FAISS = [
    "faiss-gpu>=1.14.3; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "faiss-cpu>=1.14.3; sys_platform != 'linux' or platform_machine != 'x86_64'",
]

# To write and to check ONNX files.
EXPORT = ["onnx", "onnxruntime"]

setup(
    name="torchreid_autoreid",
    version=re.search(r'__version__ = "(.+)"', (HERE / "torchreid_autoreid" / "version.py").read_text())[1],
    description="Architecture search for person re-identification, and retrieval at any size, for torchreid",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["torchreid_autoreid", "torchreid_autoreid.*"]),
    install_requires=[
        "torch>=2.2",
        "torchvision",
        "torchreid>=0.2.5",
        "yacs",
        "numpy",
        "scipy",
        "tqdm",
        "filelock",
        "PyYAML",
        *TORCHREID_IMPORTS,
        *FAISS,
    ],
    extras_require={"export": EXPORT, "test": ["hypothesis", "pytest", "pytest-xdist", "ruff", "mypy", *EXPORT]},
)
