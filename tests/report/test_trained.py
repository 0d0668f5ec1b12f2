"""Figures of trainings stand apart from those of the search, and only of the cells that it found."""

import json
import re

import pytest
import yaml

from torchreid_autoreid.commands import main
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.report import write_report
from torchreid_autoreid.report.costs import Costs, Network
from torchreid_autoreid.report.trained import measured_alike, trained_runs

FIGURES = {"mAP": 0.71, "rank1": 0.86, "num_valid_queries": 100}


@pytest.fixture
def training(tmp_path):
    def make(genotype, figures=FIGURES, name="training", model="autoreid"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "history.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
        (folder / "results.json").write_text(json.dumps({"market1501": figures}))
        settings = {"model": {"name": model}, "autoreid": {"genotype": str(genotype)}, "train": {"seed": 3}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        return folder

    return make


@pytest.mark.usefixtures("no_drawing")
def test_the_figures_of_trainings_are_on_the_page_of_their_search(log_dir, training, capsys):
    one, moved = training(log_dir / "genotype.json"), training("gone.json", name="moved")
    before = write_report(log_dir).read_text()
    assert "Not trained yet, as far as this page knows" in before
    assert main(["report", str(log_dir), "--trained", str(one), "--trained", str(moved)]) == 0
    capsys.readouterr()
    text = (log_dir / "report.html").read_text()
    rows = re.findall(r"<tr><th scope=row>(?:training|moved)</th>.*?</tr>", text)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    # Wilson's interval of 86 of 100, from the closed form
    assert cells[0] == ["market1501", "71.0%", "86.0% (77.9% to 91.5%)", "100", "2", "3", "these"]
    assert cells[1][-1] == "not checked: the file of the genotype is not where it was"
    assert "Not trained yet" not in text


@pytest.mark.usefixtures("no_drawing")
def test_mAP_stands_beside_the_cost_of_those_alone_that_were_tested_alike(log_dir, training):
    own, other = training(log_dir / "genotype.json"), training("", model="resnet50", name="resnet")
    unlike = training("baseline", FIGURES | {"num_valid_queries": 99}, name="few")
    runs = [*trained_runs([own], Genotype.load(log_dir / "genotype.json")), *trained_runs([other, unlike])]
    assert [run.network for run in runs] == ["these", "resnet50", "autoreid, cells baseline"]
    assert [run.name for run in measured_alike(runs)] == ["training", "resnet"]
    costs = Costs(
        "Counted.", (256, 128), [Network("the network found", 3, 30, own=True), Network("known", 1, 10)],
        trained={str(folder): Network(folder.name, 5, size) for size, folder in enumerate((own, other, unlike), 50)},
    )  # fmt: skip
    text = write_report(log_dir, trained=[own], beside=[other, unlike], costs=costs).read_text()
    section = text[text.index("Cost beside other networks") :]
    rows = re.findall(r"<tr><th scope=row>(.*?)</th><td>\d+</td><td>\d+</td><td>(.*?)</td></tr>", section)
    assert rows == [
        ("known", "–"), ("the network found", "–"), ("training", "71.0%"), ("resnet", "71.0%"), ("few", "–")
    ]  # fmt: skip
    assert "mAP on market1501 with 100 queries, of the trainings that were tested alike." in section
    without = write_report(log_dir, costs=costs).read_text()
    assert "mAP was measured of none of them on one protocol, so the axes are those of cost alone." in without


def test_trainings_without_a_configuration_are_beside_nobody(training):
    folders = [training("", name=name) for name in ("one", "two")]
    for folder in folders:
        (folder / "config.yaml").unlink()
    assert len(measured_alike(trained_runs(folders))) == 1
    assert measured_alike([]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genotype": "baseline"}, "trained baseline, whose cells are not those of the search"),
        ({"model": "osnet_x1_0"}, "trained osnet_x1_0, not a network of the search"),
        ({"figures": {"mAP": 0.7}}, r"results\.json has no rank1"),
        ({"figures": FIGURES | {"mAP": float("nan")}}, r"results\.json has no mAP"),
        ({"figures": FIGURES | {"mAP": True}}, r"results\.json has no mAP"),
        ({"figures": FIGURES | {"num_valid_queries": 0}}, "counts no query"),
        ({"figures": None}, r"results\.json has no mAP"),
    ],
)
def test_what_is_no_training_of_these_cells_is_refused(training, changes, message):
    genotype = Genotype.load("retrieval")
    with pytest.raises(UserError, match=message):
        trained_runs([training(**{"genotype": "retrieval"} | changes)], genotype)


def test_files_that_are_not_results_are_refused(training, log_dir, capsys):
    folder = training("retrieval")
    for content, message in ((b"{", "is not JSON"), (b"[" * 9999, "is not JSON"), (b"[]", "has no mAP")):
        (folder / "results.json").write_bytes(content)
        with pytest.raises(UserError, match=message):
            trained_runs([folder], Genotype.load("retrieval"))
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"holds no results\.json, so it is no log of a training"):
        trained_runs([folder], Genotype.load("retrieval"))
    assert main(["report", str(log_dir), str(folder), "--trained", str(folder), "--output", "x.html"]) == 2
    assert "--trained belongs to the report of one search" in capsys.readouterr().err
