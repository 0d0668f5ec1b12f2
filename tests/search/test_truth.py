"""The truth set: reading, tables, and what it says."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import operation_names
from torchreid_autoreid.search.selection import draw_genotype
from torchreid_autoreid.search.truth import Ranked, TruthSet, Worth, depth, signal_summary, spread_and_noise, summary

LAYERS = [1, 1, 1, 1]


def row(index, seed, mean_ap):
    genotype = draw_genotype(operation_names("reid"), 4, f"test {index}", name=f"test-{index}")
    return {
        "index": index, "seed": seed, "layers": LAYERS, "genotype": genotype.to_dict(), "mAP": mean_ap, "rank1": 0.5,
        "mINP": 0.1, "params": 1000 + index, "macs": 2000 + index, "seconds": 1.5,
    }  # fmt: skip


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    worth = rng.uniform(0.2, 0.4, 20)
    return TruthSet.of_rows(
        {"channels": 16}, [row(i, s, worth[i] + rng.normal(0, 0.01)) for s in (1, 2) for i in range(20)]
    )


def test_it_comes_back_from_its_file(truth, tmp_path):
    truth.save(tmp_path / "truth.json")
    assert TruthSet.load(tmp_path / "truth.json") == truth


def test_tables_leave_out_what_is_incomplete(truth):
    indices, values = truth.table(LAYERS)
    assert indices == list(range(20))
    assert values.shape == (20, 2)
    assert truth.means(LAYERS) == {i: pytest.approx(values[i].mean()) for i in indices}
    growing = TruthSet(truth.about, truth.networks[:25])  # five of the second seed
    assert growing.table(LAYERS)[0] == list(range(5))
    assert len(growing.means(LAYERS)) == 20
    assert truth.table([2, 2, 2, 2])[0] == []


def test_spread_and_noise_are_those_that_made_the_figures():
    rng = np.random.default_rng(1)
    values = rng.normal(30, 3, (4000, 1)) + rng.normal(0, 1.5, (4000, 2))
    spread, noise, reliability = spread_and_noise(values)
    assert (spread, noise) == (pytest.approx(3, rel=0.05), pytest.approx(1.5, rel=0.05))
    assert reliability == pytest.approx(9 / (9 + 1.5**2 / 2), rel=0.05)


def test_the_summary_names_the_best_and_the_worst(truth):
    text = summary(truth)
    indices, values = truth.table(LAYERS)
    best, worst = values.mean(axis=1).argmax(), values.mean(axis=1).argmin()
    assert f"best, {100 * values[best].mean():.1f}" in text
    assert f"worst, {100 * values[worst].mean():.1f}" in text
    assert "20 genotypes, 2 seeds" in text
    assert indices


def test_depth_counts_the_longest_path():
    chain = tuple(((("sep_conv_3x3", n + 1), ("skip_connect", 0))) for n in range(4))
    assert depth(chain) == 4
    assert depth(((("skip_connect", 0), ("skip_connect", 1)),)) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content | {"version": 2}, ["version 2", "reads version 1"]),
        (lambda content: [content], ["version None"]),
        (lambda content: content | {"networks": [{}]}, ["no truth set"]),
        (lambda content: content | {"networks": [content["networks"][0] | {"mAP": 1.5}]}, ["out of range"]),
        (lambda content: content | {"networks": [content["networks"][0] | {"index": "x"}]}, ["out of range"]),
        (lambda content: content | {"networks": [content["networks"][0] | {"more": 1}]}, ["no truth set"]),
        (lambda content: {"version": 1}, ["no truth set"]),
    ],
)
def test_other_files_are_refused(truth, tmp_path, change, words):
    path = tmp_path / "truth.json"
    truth.save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError) as refused:
        TruthSet.load(path)
    for word in [str(path), *words]:
        assert word in str(refused.value)
    with pytest.raises(UserError, match="cannot read"):
        TruthSet.load(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        TruthSet.load(path)


def test_signals_come_back_from_the_file_and_are_ranked(truth, tmp_path):
    means = truth.means(LAYERS)
    signals = {"good": {index: 2 * value for index, value in means.items()}, "bad": {i: -v for i, v in means.items()}}
    with_signals = TruthSet(truth.about, truth.networks, signals)
    with_signals.save(tmp_path / "truth.json")
    assert TruthSet.load(tmp_path / "truth.json") == with_signals
    lines = signal_summary(with_signals).splitlines()
    assert "good: Spearman +1.00 [+1.00, +1.00], regret 0.0, of the best of three 0.0 (20 genotypes)" in lines[1]
    worst = 100 * (max(means.values()) - min(means.values()))
    assert f"bad: Spearman -1.00 [-1.00, -1.00], regret {worst:.1f}" in lines[2]
    learned = [f"operations by {name} of the others" for name in ("good", "bad", "full training")]
    assert [line.split(":")[0].strip() for line in lines[3:]] == ["parameters", "MACs", *learned, "a full training"]


def test_what_a_search_is_worth_grows_with_its_candidates_and_follows_the_signal(truth):
    worth, means = Worth.of(truth, LAYERS), truth.means(LAYERS)
    gains = [worth.gain(count) for count in (1, 2, 5, 20)]
    assert gains[0] == pytest.approx(0.0, abs=1e-3)
    assert gains == sorted(gains)
    best = max(means.values()) - np.mean(list(means.values()))
    assert gains[-1] == pytest.approx(best, abs=0.015)  # all are tried; the noise is 0.01
    assert worth.gain(5, means) == pytest.approx(gains[2], abs=0.01)
    assert worth.gain(5, {index: -value for index, value in means.items()}) < -0.03
    assert worth.gain(5, dict.fromkeys(means, 0.0) | {0: 0.0}) == pytest.approx(0.0, abs=3e-3)
    assert worth.gain(5, means, finalists=5) == pytest.approx(gains[2], abs=1e-9)
    assert worth.gain(20, {index: -value for index, value in means.items()}, finalists=20) == pytest.approx(gains[3])
    # by all pairs of draws: what the better one of two is worth
    pairs = [max(worth.means[i], worth.means[j]) for i in means for j in means if i != j]
    mean = np.mean(list(worth.means.values()))
    assert worth.gain(2, worth.means) == pytest.approx(np.mean(pairs) - mean, abs=2e-3)


def test_without_second_seeds_nothing_is_said_of_worth(truth):
    first = TruthSet(truth.about, [network for network in truth.networks if network.seed == 1])
    assert Worth.of(first, LAYERS) is None
    assert "is worth" not in signal_summary(first)
    assert "is worth" in signal_summary(truth)


def test_what_others_say_of_operations_ranks_where_operations_decide():
    rows = [row(i, 1, 0.5) for i in range(40)]
    for one in rows:
        kept = [name for block in one["genotype"]["normal"] for name, _ in block]
        one["mAP"] = 0.3 + 0.05 * kept.count("part_aware") + 0.01 * (one["index"] % 3)
    (line,) = [line for line in signal_summary(TruthSet.of_rows({}, rows)).splitlines() if "full training" in line]
    assert float(line.split()[line.split().index("Spearman") + 1]) > 0.8


@pytest.mark.parametrize("count", [3, 20])
def test_the_interval_is_by_scipys_correlations_of_draws_in_which_both_differ(count):
    rng = np.random.default_rng(3)
    signal, worth = np.round(rng.normal(size=count)), rng.normal(size=count)  # with ties
    rng, expected = np.random.default_rng(0), []
    for _ in range(60):
        drawn = rng.integers(0, count, count)
        if len(set(signal[drawn])) > 1 and len(set(worth[drawn])) > 1:
            expected.append(spearmanr(signal[drawn], worth[drawn]).statistic)
    assert len(expected) < 60 or count > 3
    found = Ranked.of(signal, worth, samples=60)
    assert [found.low, found.high] == list(np.percentile(expected, [2.5, 97.5]))


def test_the_interval_of_a_correlation_holds_the_truth_about_as_often_as_it_says():
    rng, held = np.random.default_rng(4), 0
    for _ in range(40):
        worth = rng.normal(size=60)
        signal = 0.7 * worth + np.sqrt(1 - 0.49) * rng.normal(size=60)  # Spearman's of this normal pair: 0.683
        found = Ranked.of(signal, worth, samples=200)
        held += found.low <= 0.683 <= found.high
    assert held >= 33


@pytest.mark.parametrize("signals", [{"x": [1]}, {"x": {"a": 1.0}}, {"x": {"1": "much"}}, [1]])
def test_signals_that_are_none_are_refused(truth, tmp_path, signals):
    truth.save(tmp_path / "truth.json")
    content = json.loads((tmp_path / "truth.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(content | {"signals": signals}))
    with pytest.raises(UserError, match=r"truth.json is no truth set"):
        TruthSet.load(tmp_path / "truth.json")
