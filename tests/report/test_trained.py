"""Figures of trainings stand apart from those of the search, and only of the cells that it found."""

import json
import re

import pytest
import yaml

from torchreid_autoreid.commands import main
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.report import write_report
from torchreid_autoreid.report.trained import trained_table

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
        trained_table([training(**{"genotype": "retrieval"} | changes)], genotype)


def test_files_that_are_not_results_are_refused(training, log_dir, capsys):
    folder = training("retrieval")
    for content, message in ((b"{", "is not JSON"), (b"[" * 9999, "is not JSON"), (b"[]", "has no mAP")):
        (folder / "results.json").write_bytes(content)
        with pytest.raises(UserError, match=message):
            trained_table([folder], Genotype.load("retrieval"))
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"holds no results\.json, so it is no log of a training"):
        trained_table([folder], Genotype.load("retrieval"))
    assert main(["report", str(log_dir), str(folder), "--trained", str(folder), "--output", "x.html"]) == 2
    assert "--trained belongs to the report of one search" in capsys.readouterr().err
