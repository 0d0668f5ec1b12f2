"""A search that never ran, with the log folder that it would have left."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype, derive, num_edges
from torchreid_autoreid.records import SearchRecord
from torchreid_autoreid.report import html

sys.path.insert(0, str(Path(__file__).parent))  # for what tests share

CONFIG = """
autoreid: {channels: 16, layers: [2, 2, 2, 2]}
data: {height: 128, width: 64, sources: [market1501]}
search: {order: 2, split: image}
train: {seed: 1}
"""


def _make_record(epoch, epochs, blocks=4, operations=OPERATION_NAMES):
    rng = np.random.default_rng(epoch)
    probabilities = {
        kind: rng.dirichlet(np.full(len(operations), 3.0), num_edges(blocks)).tolist() for kind in ("normal", "reduce")
    }
    genotype = derive(**probabilities, operations=operations)
    done = epoch / epochs
    half = {
        "loss": 6.5 * math.exp(-2 * done),
        "loss_softmax": 5.0 * math.exp(-2 * done),
        "loss_triplet": 8.0 * math.exp(-3 * done),
        "top1": 0.7 * done,
        "top5": 0.9 * done,
        "top10": done,
    }
    none = list(operations).index("none")
    retrieval = {"mAP": 0.5 * done, "rank1": 0.6 * done, "rank5": 0.8 * done, "rank10": 0.9 * done, "mINP": 0.3 * done}
    return {
        "epoch": epoch,
        "epochs": epochs,
        "seconds": 12.5,
        "operations": list(operations),
        "w": half,
        "alpha": None if epoch == 1 else {name: value * 0.9 for name, value in half.items()},
        "lr": {"w": 0.1 * (1 - done) + 1e-3, "alpha": 0.02},
        "alphas": {kind: np.log(rows).tolist() for kind, rows in probabilities.items()},
        "probabilities": probabilities,
        "none_mass": {kind: float(np.mean(rows, axis=0)[none]) for kind, rows in probabilities.items()},
        "genotype": genotype.to_dict(),
        "skips": genotype.count("skip_connect"),
        "cost": None,
        "retrieval": retrieval | {"num_valid_queries": 321} if epoch % 2 == 0 else None,
    }


def _write_history(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_record():
    return _make_record


def _parsed(records):
    return [SearchRecord.from_dict(record) for record in records]


@pytest.fixture
def parsed():
    return _parsed


@pytest.fixture(scope="session")
def write_history():
    return _write_history


def _records():
    return [_make_record(epoch, epochs=4) for epoch in (1, 2, 3, 4)]


@pytest.fixture
def records():
    return _records()


@pytest.fixture
def limited_records(records):
    """Of a search with limits."""
    for record in records:
        done = record["epoch"] / record["epochs"]
        record["cost"] = {
            "macs": {"limit": 1e9, "expected": 2e9 - done * 1e9, "derived": 1.2e9, "genotype": 9e8, "weight": 0.5},
            "latency_ms": {"limit": 20.0, "expected": None, "derived": 19.5, "genotype": 18.25, "weight": None},
        }
    return records


def _write_log(folder, records):
    folder.mkdir()
    _write_history(folder / "history.jsonl", records)
    Genotype.from_dict(records[-1]["genotype"]).save(folder / "genotype.json")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture
def log_dir(tmp_path, records):
    return _write_log(tmp_path / "search", records)


@pytest.fixture(scope="module")
def kept_log_dir(tmp_path_factory):
    """One that no test changes."""
    return _write_log(tmp_path_factory.mktemp("kept") / "search", _records())


@pytest.fixture
def no_drawing(monkeypatch):
    """Empty pictures, where a test is about something else and drawing would only take time."""
    monkeypatch.setattr(html, "draw_ribbon", lambda *_: Figure(figsize=(1, 1)))
    monkeypatch.setattr(html, "draw_history", lambda *_, **__: Figure(figsize=(1, 1)))
