"""The figure under each definition is that of the code it is named after."""

import numpy as np
import pytest
import torchreid
from oracles import clustered, distance_matrix, market1501

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, evaluate, figures_by_definition, k_reciprocal_distances


def market_trapezoid(distances, query, gallery):
    """Market-1501's compute_AP.m, line for line."""
    means = []
    for row, pid, camera in zip(distances, query.pids, query.camids, strict=True):
        good = set(np.flatnonzero((gallery.pids == pid) & (gallery.camids != camera)).tolist())
        junk = set(np.flatnonzero((gallery.pids == pid) & (gallery.camids == camera)).tolist())
        old_recall, old_precision, ap, intersection, j, good_now = 0.0, 1.0, 0.0, 0, 0, 0
        for item in np.argsort(row, kind="stable").tolist():
            if item in junk:
                continue
            if item in good:
                good_now += 1
                intersection += 1
            recall = intersection / len(good) if good else 0
            precision = intersection / (j + 1)
            ap += (recall - old_recall) * ((old_precision + precision) / 2)
            old_recall, old_precision = recall, precision
            j += 1
            if good_now == len(good):
                break
        if good:
            means.append(ap)
    return np.mean(means)


def test_each_figure_is_that_of_its_definition():
    query, gallery = clustered(40, seed=0, spread=1.5), clustered(150, seed=1, spread=1.5)
    figures = figures_by_definition(query, gallery, k1=9)
    assert len({round(figure.mAP, 6) for figure in figures}) == 6
    plain = k_reciprocal_distances(query.features, gallery.features, k1=9, lambda_value=1.0)
    rankings = [plain] + [
        k_reciprocal_distances(query.features, gallery.features, k1=9, definition=name)
        for name in ("torchreid", "zhong")
    ]
    expected = [f(d, query, gallery) for d in rankings for f in (lambda *a: market1501(*a)[0], market_trapezoid)]
    np.testing.assert_allclose([figure.mAP for figure in figures], expected, atol=1e-9)


def test_layumis_distances_are_torchreids():
    """layumi's re_ranking takes cosines, makes 2 - 2 cos of them, and goes on as torchreid's."""
    query, gallery = clustered(20, seed=0, spread=1.5), clustered(60, seed=1, spread=1.5)
    matrices = [
        2 * distance_matrix(a.features, b.features, "cosine")
        for a, b in ((query, gallery), (query, query), (gallery, gallery))
    ]
    theirs = torchreid.utils.re_ranking(*matrices, k1=9)
    ours = k_reciprocal_distances(query.features, gallery.features, k1=9, definition="torchreid")
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_every_figure_says_who_reports_it():
    figures = figures_by_definition(clustered(40), clustered(150, seed=1), k1=9)
    who = {(figure.ranking.split(",")[0], figure.precision.split()[0]): figure.reported_by for figure in figures}
    assert "layumi" in who["plain", "trapezoid"]
    assert "layumi" not in who["plain", "mean"]
    assert all(figure.reported_by for figure in figures)


def test_junk_among_the_neighbours_is_a_definition_of_its_own():
    query, gallery = clustered(40, seed=0, spread=1.5), clustered(150, seed=1, spread=1.5)
    gallery = Embeddings(gallery.features, np.where(np.arange(150) % 5, gallery.pids, -1), gallery.camids)
    figures = figures_by_definition(query, gallery, k1=9, junk_pids=[-1])
    assert len(figures) == 10
    without = evaluate(query, gallery.take(gallery.pids != -1), rerank=True, k1=9)
    assert without.mAP in [figure.mAP for figure in figures if "junk left out" in figure.ranking]


def test_what_differs_between_definitions_is_not_given():
    with pytest.raises(UserError, match="rerank differ from definition to definition"):
        figures_by_definition(clustered(9), clustered(30, seed=1), rerank=True)
