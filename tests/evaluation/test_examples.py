"""The examples for users of other libraries, beside average precision written out, and without torchreid."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "projects" / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def average_precision(similarities, matches):
    """Of one query, by definition: the mean over true matches of the precision at their ranks."""
    ranked = matches[np.argsort(-similarities)]
    return np.mean([ranked[: rank + 1].mean() for rank in np.flatnonzero(ranked)])


def cosines(query, gallery):
    query, gallery = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (query, gallery))
    return query.astype(np.float64) @ gallery.T


def test_each_image_against_all_others():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(9).repeat_interleave(4)[:, None]
    vectors = torch.randn(9, 8, generator=generator)[labels[:, 0]] + torch.randn(36, 8, generator=generator)
    found = example("with_pytorch_metric_learning")["against_the_rest"](vectors, labels)
    table, known = cosines(vectors.numpy(), vectors.numpy()), labels.numpy()[:, 0]
    expected = []
    for query in range(36):
        others = np.arange(36) != query
        expected.append(average_precision(table[query, others], known[others] == known[query]))
    assert found.num_valid_queries == 36
    assert found.mAP == pytest.approx(np.mean(expected), abs=1e-7)


@pytest.mark.parametrize("encounter", ["", "date"])
def test_animals_by_name_and_encounter(encounter):
    random = np.random.default_rng(0)
    parts, centres = [], random.normal(size=(5, 8))
    for count, seen in ((12, [4, 2, 0, 1]), (40, [0, 1, 2, 3])):  # numbered anew, the names would be others
        animals = np.resize(seen, count)
        metadata = {
            "identity": np.array([f"zebra {animal}" for animal in animals], object),
            "date": random.integers(0, 3, count),
        }
        parts.append(SimpleNamespace(features=centres[animals] + random.normal(size=(count, 8)), metadata=metadata))
    found = example("with_wildlife_tools")["among"](*parts, encounter)
    query, database = parts
    table, expected = cosines(query.features, database.features), []
    for row, (name, date) in enumerate(zip(query.metadata["identity"], query.metadata["date"], strict=True)):
        matches = database.metadata["identity"] == name
        kept = ~(matches & (database.metadata["date"] == date)) if encounter else np.ones(40, bool)
        if matches[kept].any():
            expected.append(average_precision(table[row, kept], matches[kept]))
    assert len(expected) == 9  # nobody has seen zebra 4 before
    assert found.num_valid_queries == len(expected)
    assert found.mAP == pytest.approx(np.mean(expected), abs=1e-7)


def test_they_run_without_torchreid():
    code = "import runpy, sys\n" + "\n".join(
        f"runpy.run_path({str(path)!r}, run_name='__main__')" for path in sorted(EXAMPLES.glob("*.py"))
    )
    code += (
        "\nprint(*{'torchreid', 'torchvision', 'matplotlib', 'cv2', 'yacs', 'PIL', 'tensorboard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mAP") == 3
    assert done.stdout.splitlines()[-1] == ""
