"""The page of a comparison ranks what was measured alike, and says why it does not rank the rest."""

import itertools
import re

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from scipy.stats import ttest_ind

from torchreid_autoreid.commands import main
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, Genotype
from torchreid_autoreid.report import comparison
from torchreid_autoreid.report.comparison import _by_chance, write_comparison

NASTY = "<script>alert(1)</script>'\"&"


@pytest.fixture
def no_drawing(monkeypatch):
    """Empty pictures: drawing takes most of the time."""
    for name in ("draw_beside", "draw_dots"):
        monkeypatch.setattr(comparison, name, lambda *_, **__: Figure(figsize=(1, 1)))


@pytest.fixture
def log(tmp_path, make_record, write_history):
    """Makes the log folder of a search with a score, a seed and settings of its own."""

    def make(name, mean=0.4, seed=1, strategy="darts", settings=None, genotype="retrieval", **changes):
        folder = tmp_path / name
        folder.mkdir()
        records = [make_record(epoch, 4) | {"genotype": Genotype.load(genotype).to_dict()} for epoch in (1, 2, 3, 4)]
        records[3]["retrieval"] |= {"mAP": mean}
        for record in records:
            record |= changes
        write_history(folder / "history.jsonl", records)
        Genotype.load(genotype).save(folder / "genotype.json")
        tree = {"search": {"strategy": strategy, "split": "image"}, "train": {"seed": seed}, "data": {"save_dir": name}}
        for key, value in (settings or {}).items():
            section, leaf = key.split(".")
            tree.setdefault(section, {})[leaf] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        return folder

    return make


def verdict_of(tmp_path, *folders):
    text = write_comparison(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    return re.findall(r"<li><span aria-hidden=true>(.)</span>(.*?)</li>", text), text


@pytest.mark.usefixtures("no_drawing")
def test_seeds_of_the_same_settings_are_one_group_and_groups_are_ranked_by_their_means(log, tmp_path):
    scores = {"darts": [0.40, 0.42], "gdas": [0.50, 0.53]}
    folders = [
        log(f"{name}-{seed}", scores[name][seed], seed, name) for name, seed in itertools.product(scores, (0, 1))
    ]
    said, text = verdict_of(tmp_path, *folders)
    low, high = ttest_ind(scores["gdas"], scores["darts"], equal_var=False).confidence_interval()
    assert said[0] == (
        "!" if low <= 0 else "✓",
        "C and D have 10.5 points more mAP than A and B on average, with an interval of "
        f"{100 * low:+.1f} to {100 * high:+.1f} (95 %, Welch) from their "
        + ("seeds." if low > 0 else "seeds: more seeds have to tell."),
    )
    assert said[1][1] == "In the order of their held-out mAP (means): C and D (51.5%) &gt; A and B (41.0%)."
    assert "is the search network, not the network of the genotype" in said[2][1]
    assert "<th scope=row>search.strategy</th><td>darts</td><td>darts</td><td>gdas</td><td>gdas</td>" in text
    assert "data.save_dir" not in text  # where a run lies is no setting
    assert "<th scope=row>held-out mAP</th><td>40.0%</td><td>42.0%</td><td>50.0%</td><td>53.0%</td>" in text
    assert "A and B 41.0%; C and D 51.5%" in text  # the dots, for those who cannot see them


@pytest.mark.usefixtures("no_drawing")
def test_a_lead_of_one_run_over_another_is_called_one_that_a_seed_may_turn_round(log, tmp_path):
    said, _ = verdict_of(tmp_path, log("a", 0.4), log("b", 0.45, strategy="gdas"))
    assert said[0][0] == "!"
    assert said[0][1].startswith("B has 5.0 points more mAP than A, but not both are repeated")


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": {"search.split": "identity"}}, "search.split (image / identity)"),
        ({"settings": {"test.dist_metric": "cosine"}}, "test.dist_metric (None / cosine)"),
        (
            {
                "candidate": {"number": 1, "rung": 1, "genotype": Genotype.load("retrieval").to_dict(), "score": 0.9,
                              "figure": "mAP"},
            },
            "measured (the search network / the candidates, trained)",
        ),
    ],
    ids=["split", "distance", "network"],
)  # fmt: skip
def test_figures_of_unlike_protocols_are_not_ranked(log, tmp_path, changes, reason):
    said, _ = verdict_of(tmp_path, log("a", 0.4), log("b", 0.9, **changes))
    assert said[0][0] == "!"
    assert said[0][1].startswith("The figures of A and of B are not ranked: they differ in ")
    assert reason in said[0][1]
    assert not any("points more" in text or "order" in text for _, text in said)


@pytest.mark.usefixtures("no_drawing")
def test_a_run_without_its_configuration_is_not_ranked(log, tmp_path):
    one, other = log("a"), log("b")
    (other / "config.yaml").unlink()
    said, text = verdict_of(tmp_path, one, other)
    why = "they differ in unknown settings, since there is no config.yaml in B."
    assert said[0] == ("!", f"The figures of A and of B are not ranked: {why}")
    assert "B: The folder holds no config.yaml" in text


@pytest.mark.usefixtures("no_drawing")
def test_another_data_folder_counts_where_the_queries_are_others_too(log, tmp_path):
    def rooted(name, root, **changes):
        return log(name, settings={"data.root": root}, **changes)

    one, moved = rooted("a", "here"), rooted("b", "there")
    said, _ = verdict_of(tmp_path, one, moved)
    assert not any("not ranked" in text for _, text in said)
    retrieval = dict.fromkeys(("mAP", "rank1", "rank5", "rank10", "mINP"), 0.5) | {"num_valid_queries": 7}
    said, _ = verdict_of(tmp_path, one, rooted("c", "there", retrieval=retrieval))
    assert "data.root (here / there), with other queries" in said[0][1]


@pytest.mark.usefixtures("no_drawing")
def test_a_search_that_runs_still_or_has_measured_nothing_is_not_ranked(log, tmp_path):
    said, text = verdict_of(tmp_path, log("a"), log("b", epochs=9), log("c", retrieval=None))
    assert ("!", "B has not ended, and is not ranked.") in said
    assert ("!", "C has measured no retrieval, and is not ranked.") in said
    assert not any("order" in sentence for _, sentence in said)
    assert "B: The search is still running, or was stopped: 4 of 9 epochs are done." in text


@pytest.mark.usefixtures("no_drawing")
def test_the_candidate_of_the_last_rung_is_the_score(log, tmp_path, make_record, write_history):
    folder = log("a")
    genotype = Genotype.load("retrieval").to_dict()
    records = [
        make_record(epoch, 4)
        | {"alpha": None, "candidate": {"number": number, "rung": rung, "genotype": genotype, "score": score}}
        for epoch, (number, rung, score) in enumerate([(1, 1, 0.8), (2, 1, 0.7), (1, 2, 0.5), (2, 2, 0.6)], start=1)
    ]  # fmt: skip
    for record, mean in zip(records, [0.4, 0.3, 0.2, 0.1], strict=True):
        record["candidate"]["figure"] = "auc"
        record["retrieval"] = records[1]["retrieval"] | {"mAP": mean}
    write_history(folder / "history.jsonl", records)
    _, text = verdict_of(tmp_path, folder, log("b"))
    assert "<th scope=row>held-out mAP</th><td>10.0%</td>" in text
    assert "the candidates, trained, candidate 2 of rung 2" in text


@pytest.mark.usefixtures("no_drawing")
def test_a_search_with_a_selection_is_judged_by_the_candidates_of_it(log, tmp_path, make_record, write_history):
    """So it is ranked beside a search that trains candidates, and not beside a search network."""

    def trained(epochs, scores, name):
        genotype = Genotype.load("retrieval").to_dict() | {"name": name}
        return [
            make_record(epoch, epochs)
            | {"alpha": None, "seconds": 60.0, "retrieval": make_record(4, 4)["retrieval"] | {"mAP": score}}
            | {"candidate": {"number": epoch, "rung": 1, "genotype": genotype, "score": score, "figure": "mAP"}}
            for epoch, score in enumerate(scores, start=1)
        ]

    with_selection = []
    for seed, scores in enumerate([(0.5, 0.6), (0.7, 0.3)], start=1):
        folder = log(f"selected-{seed}", 0.1, seed, settings={"search.selection": "halving"}, seconds=30.0)
        (folder / "selection").mkdir()
        write_history(folder / "selection" / "history.jsonl", trained(2, scores, "searched"))
        with_selection.append(folder)
    random = log("random", strategy="random")
    write_history(random / "history.jsonl", trained(3, (0.2, 0.4, 0.3), "random"))
    sentences, text = verdict_of(tmp_path, *with_selection, random, log("darts", 0.9))
    said = " ".join(sentence for _, sentence in sentences)
    assert "A and B have 25.0 points more mAP than C" in said  # 65.0 and 40.0
    assert "In the order of their held-out mAP (means): A and B (65.0%) &gt; C (40.0%)." in said
    assert "A, B and C and of D are not ranked: they differ in measured" in said
    assert "the search network, not the network of" not in said
    assert "<td>4 of 4, then 2 of 2</td><td>4 of 4, then 2 of 2</td><td>3 of 3</td><td>4 of 4</td>" in text
    assert "<td>4 min</td><td>4 min</td><td>3 min</td>" in text
    assert "darts, selection by halving, seed 1" in text


@pytest.mark.usefixtures("no_drawing")
def test_shared_edges_are_those_of_the_genotypes(log, tmp_path):
    presets = ("retrieval", "baseline", "retrieval")
    said, text = verdict_of(
        tmp_path, *(log(name, genotype=preset) for name, preset in zip("abc", presets, strict=True))
    )
    genotypes = [Genotype.load(preset) for preset in presets]

    def edges(genotype):
        return {
            (kind, block, *edge)
            for kind in ("normal", "reduce")
            for block, pair in enumerate(getattr(genotype, kind))
            for edge in pair
        }

    counts = [[len(edges(one) & edges(other)) for other in genotypes] for one in genotypes]
    for letter, row in zip("ABC", counts, strict=True):
        assert f"<th scope=row>{letter}</th>" + "".join(f"<td>{count}</td>" for count in row) in text
    mean = np.mean([counts[0][1], counts[0][2], counts[1][2]])
    assert f"Two of them share {mean:.3g} of 16 edges on average; two that are drawn blindly share 1.7." in said[-1][1]
    operation, source = genotypes[0].normal[0][0]
    everywhere = len({edge[3:] for edge in edges(genotypes[1]) if edge[:2] == ("normal", 0)}) and (
        "normal", 0, operation, source
    ) in edges(genotypes[1])  # fmt: skip
    shown = f"{operation} of {source} · {3 if everywhere else 2}"
    assert (f"<b>{shown}</b>" in text) == bool(everywhere)
    assert shown in text


def test_the_chance_of_a_shared_edge_is_that_of_genotypes_drawn_blindly():
    rng, operations = np.random.default_rng(0), [name for name in OPERATION_NAMES if name != "none"]

    def drawn():
        return {
            (kind, block, rng.choice(operations), source)
            for kind in "nr"
            for block in range(4)
            for source in rng.choice(block + 2, 2, replace=False)
        }

    shared = [len(drawn() & drawn()) for _ in range(2000)]
    assert np.mean(shared) == pytest.approx(_by_chance(4, len(operations)), abs=4 * np.std(shared) / 2000**0.5)


def test_the_page_is_drawn_and_the_same_each_time(log, tmp_path):
    folders = [log("a", 0.4), log("b", 0.5, strategy="gdas", genotype="baseline")]
    one, two = (write_comparison(folders, tmp_path / f"{name}.html").read_text() for name in "xy")
    assert one == two
    assert len(re.findall("<figure", one)) == 6  # dots, curves, two cells of each
    assert re.findall(r"<figcaption>(.*?)</figcaption>", one)[-1] == "Reduction cell of B"
    ids = re.findall(r'\bid="([^"]*)"', one)
    assert {name[0] for name in ids} <= {"m", "p"}  # markers and clips, named by their content


@pytest.mark.usefixtures("no_drawing")
def test_names_are_text_and_never_markup(log, tmp_path):
    folder = log("a", settings={"search.strategy": NASTY, f"data.{NASTY}": 1})
    folder = folder.rename(tmp_path / NASTY.replace("/", "∕"))
    _, text = verdict_of(tmp_path, folder, log("b"))
    assert text.count("<script") == 1  # our own
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.usefixtures("no_drawing")
def test_what_cannot_be_compared_is_said_in_a_line(log, tmp_path, capsys):
    one, other = log("a"), log("b")
    output = tmp_path / "c.html"
    training = tmp_path / "training"
    training.mkdir()
    (training / "history.jsonl").write_text('{"epoch": 1, "epochs": 1, "seconds": 1, "train": {"loss": 1}}\n')
    for folders, message in (
        ([one], "takes 2 to 26 log folders, not 1"),
        ([one] * 27, "takes 2 to 26 log folders, not 27"),
        ([one, other, tmp_path / "." / "a"], "was given twice"),
        ([one, tmp_path / "nowhere"], "no log folder .*nowhere"),
        ([one, training], "training/history.jsonl is of a training; give the data.save_dir of a search"),
    ):
        with pytest.raises(UserError, match=message):
            write_comparison(folders, output)
    assert not output.exists()
    with pytest.raises(UserError, match=r"ends in \.html"):
        write_comparison([one, other], tmp_path / "c.pdf")
    assert main(["report", str(one), str(other)]) == 2
    assert "--output FILE.html says where the comparison of 2 log folders goes" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "no log folder; give" in capsys.readouterr().err
    assert main(["report", str(one), "--log-dir", str(other), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert "Comparison of 2 searches" in output.read_text()
