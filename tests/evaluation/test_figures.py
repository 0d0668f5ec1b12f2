"""Each figure of retrieval against its definition, and that the table is all a new one needs."""

import json

import numpy as np
import pytest
from oracles import clustered, distance_matrix

from torchreid_autoreid.evaluation import Embeddings, evaluate
from torchreid_autoreid.evaluation import figures as module
from torchreid_autoreid.evaluation.figures import FIGURES, MatchRanks, QueryFigure, first_matches, per_query


def definitions(ranks, total, others):
    """By loops over one query's ranks of true matches, of which there are ``total``, among ``others``."""
    if not total:
        return dict.fromkeys(FIGURES, np.nan)
    precisions = [(number + 1) / rank for number, rank in enumerate(ranks)]
    before = [number / (rank - 1) if rank > 1 else 1.0 for number, rank in enumerate(ranks)]
    return {
        "mAP": sum(precisions) / total,
        "mINP": total / ranks[-1] if len(ranks) == total else 0.0,
        "auc": sum(1 - sum(1 for r in range(1, rank) if r not in ranks) / max(others, 1) for rank in ranks) / total,
        "r_precision": sum(rank <= total for rank in ranks) / total,
        "trapezoid_mAP": sum((one + other) / 2 for one, other in zip(before, precisions, strict=True)) / total,
    }


def test_every_figure_is_its_definition():
    rng = np.random.default_rng(0)
    rows, ranks, counts, others, expected, first = [], [], [], [], [], []
    for query in range(60):
        total = int(rng.integers(0, 6))
        found = sorted(rng.choice(np.arange(1, 30), int(rng.integers(0, total + 1)), replace=False).tolist())
        rows += [query] * len(found)
        ranks += found
        counts.append(total)
        others.append(int(rng.integers(29, 60)))
        expected.append(definitions(found, total, others[-1]))
        first.append(found[0] if found else 0)
    matches = MatchRanks(*map(np.array, (rows, ranks, counts, others)))
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


@pytest.mark.parametrize("options", [{}, {"junk_pids": [2]}, {"leave_out": ()}, {"distractor_pids": [3]}])
def test_the_area_under_the_roc_curve_is_that_of_the_distances(options):
    """Of each query: the share of pairs of a match and another that stand in the right order."""
    query, gallery = clustered(40, spread=2.0), clustered(200, seed=1, spread=2.0)
    distances = distance_matrix(query.features, gallery.features, "cosine")
    expected = []
    for row, pid, camera in zip(distances, query.pids, query.camids, strict=True):
        same = gallery.pids == pid
        match = same if "leave_out" in options else same & (gallery.camids != camera)
        other = ~same & ~np.isin(gallery.pids, options.get("junk_pids", []))
        if pid not in [*options.get("junk_pids", []), *options.get("distractor_pids", [])] and match.any():
            expected.append((row[match][:, None] < row[other]).mean())
    result = evaluate(query, gallery, **options)
    assert result.num_valid_queries == len(expected)
    assert result.figures["auc"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert 0.55 < result.figures["auc"] < 0.99
    assert f"AUC{' ' * 22}{result.figures['auc']:.2%}".split() in [line.split() for line in str(result).splitlines()]
