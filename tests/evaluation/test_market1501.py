"""The published figures of a public model on Market-1501."""

import json
import os
from pathlib import Path

import pytest

from torchreid_autoreid.evaluation import evaluate, load_embeddings

FOLDER = Path(os.environ.get("TORCHREID_AUTOREID_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
FEATURES = FOLDER / "market1501_retail0288.npz"


@pytest.mark.skipif(not FEATURES.is_file(), reason=f"{FEATURES} is not here; TORCHREID_AUTOREID_DATA names its folder")
@pytest.mark.parametrize("name", ["plain", "reranked"])
def test_reference_figures_are_reproduced(name):
    expected = json.loads((FOLDER / "reference.json").read_text())["market1501_retail0288"][name]
    result = evaluate(*load_embeddings(FEATURES), rerank=name == "reranked")
    assert result.num_valid_queries == expected["nv"]
    figures = {"mAP": result.mAP, "mINP": result.mINP} | {f"r{r}": result.rank(r) for r in (1, 5, 10)}
    assert figures == pytest.approx({key: expected[key] for key in figures}, abs=1e-5)
