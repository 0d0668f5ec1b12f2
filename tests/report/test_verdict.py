"""The verdict on a search says what its log supports, and each sentence is there for a log that deserves it only."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype, derive, num_edges
from torchreid_autoreid.records import CandidateRecord, SearchRecord
from torchreid_autoreid.report.verdict import kept_edges, verdict, wilson


@pytest.fixture
def record(make_record):
    """An epoch with given rows of probabilities: the sharpest on ``best`` by ``margin``, and ``none`` as given."""

    def make(epoch=20, best="sep_conv_3x3", margin=0.2, none=0.05, changed=0, rank1=0.6, queries=1000, **changes):
        row = dict.fromkeys(OPERATION_NAMES, (1.0 - none - margin) / 6)
        row |= {"none": none, best: row[best] + margin}
        rows = [[row[name] for name in OPERATION_NAMES]] * num_edges(4)
        genotype = derive(rows, rows, OPERATION_NAMES)
        own = make_record(epoch, 20) | {
            "probabilities": {"normal": rows, "reduce": rows}, "genotype": genotype.to_dict(),
            "diagnosis": {"alpha_gradient": None, "entropy": {"normal": 0.5, "reduce": 0.5}, "changed_edges": changed},
            "retrieval": dict.fromkeys(("mAP", "rank5", "rank10", "mINP"), 0.5)
            | {"rank1": rank1, "num_valid_queries": queries},
        }  # fmt: skip
        return SearchRecord.from_dict(own | changes)

    return make


def said(records):
    return " ".join(sentence.text for sentence in verdict(records))


def test_a_search_that_has_decided(record):
    records = [record(epoch) for epoch in range(1, 21)]
    text = said(records)
    assert "In its last 4 epochs the genotype did not change." in text
    assert "Every edge was won by 0.01 of probability or more (the closest by 0.200: sep_conv_3x3" in text
    assert "outweighs" not in text
    assert "collapsed" not in text
    assert "8 of 8 edges of the normal cell are sep_conv_3x3" in text
    assert "rank-1 60.0%, between 56.9% and 63.0% (95 %)." in text
    assert "those of the search network" in text


def test_one_that_has_not(record):
    records = [record(epoch, margin=0.004, none=0.4, changed=2, queries=30) for epoch in range(1, 21)]
    text = said(records)
    assert "changed on 8 edges: it has not settled" in text
    assert "16 of 16 edges were won by less than 0.01" in text
    assert "In the reduction cell the operation none outweighs the kept one on 8 of 8 edges" in text
    assert "too wide to compare searches by" in text
    assert all(sentence.speaks_for is not True for sentence in verdict(records))


def test_a_collapse_into_skips(record):
    assert "The normal cell has collapsed: 8 of its 8 edges are skip connections" in said([record(best="skip_connect")])


def test_alphas_that_have_not_moved(record):
    assert "The alphas have not moved yet" in said([record(epoch=1, alpha=None)])


def test_margins_are_those_of_the_rows(make_record):
    own = SearchRecord.from_dict(make_record(20, 20))
    for edge in kept_edges(own):
        assert 0 <= edge.source < edge.block + 2
        values = sorted([edge.probability, edge.probability - edge.margin])
        flat = np.array(own.probabilities[edge.kind]).ravel()
        assert all(np.isclose(flat, value).any() for value in values)
        assert edge.margin >= 0  # by strength, a derivation keeps the most probable operation but none


def candidates(record, scores, later=()):
    names = list(Genotype.presets().values())
    found = [
        CandidateRecord(number=i + 1, rung=1, genotype=names[i % len(names)], score=score)
        for i, score in enumerate(scores)
    ]
    found += [CandidateRecord(number=i + 1, rung=2, genotype=names[0], score=score) for i, score in later]
    return [record(epoch, candidate=candidate.to_dict(), alpha=None) for epoch, candidate in enumerate(found, start=1)]


def test_candidates_are_put_beside_the_mean_of_the_blind_draws(record):
    text = said(candidates(record, [0.2, 0.22, 0.3, 0.24], [(2, 0.5), (1, 0.4)]))
    half = 100 * t.ppf(0.975, 3) * np.std([0.2, 0.22, 0.3, 0.24], ddof=1) / math.sqrt(4)
    assert "4 candidates were measured, and the best of the last 2 is number 3 with 50.0% mAP" in text
    assert f"+6.0 points more than the mean of 4 drawn blindly (± {half:.1f}" in text
    assert "10.0 points behind" in text
    assert "those of the search network" not in text
    worse = verdict(candidates(record, [0.2, 0.22, 0.3, 0.24], [(0, 0.5)]))
    assert worse[1].speaks_for is False  # it had less than the mean when it was one of many


def test_a_selection_speaks_first_and_then_the_alphas_that_proposed(record):
    own, selection = [record()], candidates(record, [0.2, 0.22, 0.3], [(2, 0.5), (1, 0.4)])
    sentences = verdict(own, selection)
    assert sentences[0].text.startswith("3 candidates were measured, and the best of the last 2 is number 3 with 50.0%")
    assert "more than the mean of 3 drawn blindly" in sentences[1].text
    alone = verdict(own)
    assert sentences[-1].text != alone[-1].text
    (settled,) = [one.text for one in alone if one.text.startswith("Every edge was won")]
    assert settled.replace("edge was", "edge of the genotype that the alphas prefer was") in [
        one.text for one in sentences
    ]
    assert "search.selection halving does" in alone[-1].text
    assert "which the selection has trained" in sentences[-1].text


def test_candidates_that_are_ranked_by_another_figure_are_told_by_it(record):
    found = [CandidateRecord(number=1, rung=1, genotype=Genotype.load("baseline"), score=0.9, figure="auc")]
    text = said([record(1, candidate=found[0].to_dict(), alpha=None)])
    assert "the best is number 1 with 90.0% AUC on identities that it was not trained on" in text


def test_an_answer_that_a_predictor_has_chosen_is_told_apart_from_the_highest_score(record):
    drawn = [replace(Genotype.presets()["retrieval"], name=f"random_{i}") for i in range(3)]
    drawn += [
        replace(Genotype.presets()["baseline"], name="predicted_3"),
        replace(Genotype.presets()["retrieval"], name="predicted_4"),
    ]
    found = [
        CandidateRecord(number=i + 1, rung=1, genotype=genotype, score=score)
        for i, (genotype, score) in enumerate(zip(drawn, [0.2, 0.22, 0.24, 0.3, 0.28], strict=True))
    ]
    records = [
        record(i + 1, candidate=one.to_dict(), genotype=drawn[4].to_dict(), alpha=None) for i, one in enumerate(found)
    ]
    text = said(records)
    assert "5 candidates were measured. The answer is number 5 with 28.0% mAP" in text
    assert "number 4 has 30.0%" in text
    assert "+6.0 points more than the mean of 3 drawn blindly" in text
    assert "points behind" not in text


def test_the_interval_of_a_share_holds_it_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        low, high = wilson(rng.binomial(60, 0.3) / 60, 60)
        held += low <= 0.3 <= high
    assert 930 <= held <= 975
