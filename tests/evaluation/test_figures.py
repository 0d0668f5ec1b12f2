"""Each figure of retrieval against its definition, and that the table is all a new one needs."""

import json

import numpy as np
import pytest

from torchreid_autoreid.evaluation import Embeddings, evaluate
from torchreid_autoreid.evaluation import figures as module
from torchreid_autoreid.evaluation.figures import FIGURES, MatchRanks, QueryFigure, first_matches, per_query


def definitions(ranks, total):
    """By loops over one query's ranks of true matches, of which there are ``total``."""
    if not total:
        return dict.fromkeys(FIGURES, np.nan)
    precisions = [(number + 1) / rank for number, rank in enumerate(ranks)]
    before = [number / (rank - 1) if rank > 1 else 1.0 for number, rank in enumerate(ranks)]
    return {
        "mAP": sum(precisions) / total,
        "mINP": total / ranks[-1] if len(ranks) == total else 0.0,
        "r_precision": sum(rank <= total for rank in ranks) / total,
        "trapezoid_mAP": sum((one + other) / 2 for one, other in zip(before, precisions, strict=True)) / total,
    }


def test_every_figure_is_its_definition():
    rng = np.random.default_rng(0)
    rows, ranks, counts, expected, first = [], [], [], [], []
    for query in range(60):
        total = int(rng.integers(0, 6))
        found = sorted(rng.choice(np.arange(1, 30), int(rng.integers(0, total + 1)), replace=False).tolist())
        rows += [query] * len(found)
        ranks += found
        counts.append(total)
        expected.append(definitions(found, total))
        first.append(found[0] if found else 0)
    matches = MatchRanks(np.array(rows), np.array(ranks), np.array(counts))
    for name, values in per_query(matches).items():
        np.testing.assert_allclose(values, [one[name] for one in expected], atol=1e-12)
    assert first_matches(matches).tolist() == first


def test_a_line_of_the_table_is_all_that_a_figure_needs(monkeypatch):
    monkeypatch.setitem(module.FIGURES, "first_rank", QueryFigure(lambda matches: 1.0 / first_matches(matches), "MRR"))
    query = Embeddings(np.array([[1.0, 0.1], [0.1, 1.0]]), [0, 1], [0, 0])
    gallery = Embeddings(np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), [0, 0, 1], [1, 1, 1])
    result = evaluate(query, gallery)
    assert result.figures["first_rank"] == 1.0
    assert "MRR" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["first_rank"] == 1.0
    approximate = evaluate(query, gallery, index="HNSW4")
    assert approximate.to_dict()["first_rank_on_retrieved"] == pytest.approx(1.0)
