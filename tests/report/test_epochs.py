"""The steps of the slider show the epochs of the log; candidates have a strip and a table instead."""

import re

import numpy as np
import pytest
from matplotlib.colors import to_hex

from torchreid_autoreid.genotype import Genotype, cell_edges
from torchreid_autoreid.records import CandidateRecord
from torchreid_autoreid.report import write_report
from torchreid_autoreid.report.candidates import candidate_strip, candidate_table
from torchreid_autoreid.report.cells import cell_svg
from torchreid_autoreid.report.epochs import steps_of, thinned
from torchreid_autoreid.report.plots import OPERATION_COLOURS, draw_ribbon


def test_each_step_has_the_probabilities_of_its_epoch_and_marks_what_is_kept(records, parsed):
    steps = steps_of(parsed(records))
    assert steps.labels[1] == "epoch 2, held-out mAP 25.0%"
    for record, normal, reduction in zip(records, *steps.probabilities, strict=True):
        for kind, shown in (("normal", normal), ("reduce", reduction)):
            assert shown.hidden == (record["epoch"] != 4)
            cell = getattr(Genotype.from_dict(record["genotype"]), kind)
            rows = shown.content.split("<tr>")[1:]
            for (edge, block, source), row in zip(cell_edges(4), rows, strict=True):
                values = re.findall(r">(\d\.\d\d)", row)
                assert values == [f"{value:.2f}" for value in record["probabilities"][kind][edge]]
                assert row.startswith(f"<th scope=row>{source} → {block + 2}<")
                marked = [place for place, td in enumerate(row.split("<td")[1:]) if "class=kept" in td]
                kept = [record["operations"].index(op) for op, own in cell[block] if own == source]
                assert marked == sorted(kept)


def test_a_cell_stays_as_long_as_the_genotype_does(make_record, parsed):
    records = [make_record(epoch, 6) for epoch in range(1, 7)]
    for record, source in zip(records, (0, 0, 2, 2, 2, 5), strict=True):
        record["genotype"] = records[source]["genotype"]
    normal, reduction = steps_of(parsed(records)).cells
    for shown in (normal, reduction):
        assert [cell.steps for cell in shown] == ["0 1", "2 3 4", "5"]
        assert [cell.hidden for cell in shown] == [True, True, False]
    for cell, number in zip(normal, (0, 2, 5), strict=True):
        genotype = Genotype.from_dict(records[number]["genotype"])
        names = re.findall(r"<text[^>]*>(\w+)</text>", cell.content)
        kept = [operation for block in genotype.normal for operation, _ in block]
        assert [name for name in names if "_" in name or name == "none"] == kept


def test_long_histories_are_thinned_and_the_page_says_so(log_dir, make_record, write_history, parsed):
    record = make_record(1, 900)
    records = [record | {"epoch": epoch} for epoch in range(1, 901)]
    chosen = thinned(parsed(records[:250]), 100)
    assert (chosen[0].epoch, chosen[-1].epoch, len(chosen)) == (1, 250, 100)
    assert len({r.epoch for r in chosen}) == 100
    write_history(log_dir / "history.jsonl", records)
    page = write_report(log_dir)
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 4e6
    assert "100 of 900 epochs can be chosen" in text
    assert "400 of 900 epochs are shown and drawn" in text


@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_the_wires_of_a_cell_end_where_its_boxes_are(kind):
    genotype = Genotype.load("retrieval")
    drawing = cell_svg(genotype, kind)
    boxes = {tuple(map(int, place)) for place in re.findall(r'<rect x="(\d+)" y="(\d+)" width="102"', drawing)}
    wires = re.findall(r'd="M(\d+) (\d+)V(\d+)H(\d+)M', drawing)
    assert len(boxes) == len(wires) == 2 * genotype.blocks
    for _, _, row, left in wires:
        assert any(abs(int(left) - x) <= 1 and abs(int(row) - (y + 13)) <= 1 for x, y in boxes)
    # Every wire begins on the line of its source: the two inputs first, then the blocks.
    lines = [int(y) for y in re.findall(r'd="M\d+ (\d+)H', drawing)]
    sources = [source for block in getattr(genotype, kind) for _, source in block]
    assert [int(top) for _, top, _, _ in wires] == [lines[source] for source in sources]


def candidates(make_record, parsed, scores):
    genotypes = list(Genotype.presets().values())
    found = []
    for epoch, (rung, score) in enumerate(scores, start=1):
        number = epoch - sum(other < rung for other, _ in scores)
        candidate = CandidateRecord(number=number, rung=rung, genotype=genotypes[number % len(genotypes)], score=score)
        found.append(make_record(epoch, len(scores)) | {"alpha": None, "candidate": candidate.to_dict()})
    return found, parsed(found)


SCORES = [(1, 0.2), (1, 0.3), (1, None), (1, 0.25), (2, 0.5), (2, 0.4)]


def test_candidates_are_listed_the_best_of_the_last_rung_first(make_record, parsed):
    _, records = candidates(make_record, parsed, SCORES)
    table = candidate_table(records)
    assert [row[:4] for row in table.rows] == [
        ["1", "2", "50.00%", "–"],
        ["2", "2", "40.00%", "–"],
        ["2", "1", "30.00%", "–"],
        ["4", "1", "25.00%", "–"],
        ["1", "1", "20.00%", "–"],
    ]
    assert table.heads == ["candidate", "rung", "mAP", "parent", "Normal cell", "Reduction cell"]
    assert candidate_strip(records).text == "5 scores; the best of rung 2 is candidate 1 with 50.0%."
    assert candidate_strip(records[2:3]) is candidate_table(records[2:3]) is None


def test_a_search_of_candidates_has_no_heat_map_of_a_constant(log_dir, make_record, parsed, write_history):
    written, _ = candidates(make_record, parsed, SCORES)
    write_history(log_dir / "history.jsonl", written)
    text = write_report(log_dir).read_text(encoding="utf-8")
    assert text.count("class=curve ") == 4
    assert "class=heat" not in text
    assert ">The candidates</h2>" in text
    assert text.count("data-sortable") >= 2


def test_the_ribbon_has_the_colour_of_what_is_kept(records, parsed):
    own = parsed(records)
    for panel, kind in zip(draw_ribbon(own).axes, ("normal", "reduce"), strict=True):
        drawn = np.asarray(panel.images[0].get_array())
        for column, record in enumerate(own):
            kept = {
                (source, block): op for block, pair in enumerate(getattr(record.genotype, kind)) for op, source in pair
            }
            for edge, block, source in cell_edges(4):
                name = kept.get((source, block))
                assert to_hex(drawn[edge, column]) == (OPERATION_COLOURS[name] if name else "#ffffff")


@pytest.mark.usefixtures("no_drawing")
def test_the_page_says_when_the_genotype_changed_last(log_dir, records, write_history):
    for record in records[1:]:
        record["genotype"] = records[1]["genotype"]
    write_history(log_dir / "history.jsonl", records)
    assert "by epoch: the last change is in epoch 2 of 4." in write_report(log_dir).read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_drawing")
def test_alphas_before_a_selection_by_training_keep_their_epochs(log_dir, make_record, parsed, write_history):
    written, _ = candidates(make_record, parsed, SCORES)
    searched = [make_record(epoch, 9) for epoch in (1, 2, 3)]
    written = [record | {"epoch": epoch, "epochs": 9} for epoch, record in enumerate(written, start=4)]
    write_history(log_dir / "history.jsonl", searched + written)
    text = write_report(log_dir).read_text(encoding="utf-8")
    assert ">The candidates</h2>" in text
    assert text.count("<tbody data-steps=") == 2 * 3
