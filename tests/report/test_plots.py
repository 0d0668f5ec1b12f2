"""Pictures are looked at, so the tests look too: where every text, box and wire has ended up."""

import functools
import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Rectangle

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, SPACES, Genotype, cell_edges, derive, num_edges
from torchreid_autoreid.report import draw_alphas, draw_cell, draw_costs, draw_history, figure_to_rgb
from torchreid_autoreid.report.plots import OPERATION_COLOURS

KINDS = ("normal", "reduce")


def some_genotypes():
    """The published cells, both inputs of a block alike, and drawn ones of 1 to 9 blocks."""
    yield from Genotype.presets().values()
    same = [[["part_aware", 0], ["skip_connect", 0]], [["none", 2], ["none", 2]]]
    yield Genotype("same", same, same)
    for blocks in range(1, 10):
        rng = np.random.default_rng(blocks)
        normal, reduce = (rng.dirichlet(np.ones(7), num_edges(blocks)) for _ in KINDS)
        yield derive(normal, reduce, name=f"drawn_{blocks}")


CELLS = [pytest.param(genotype, kind, id=f"{genotype.name}-{kind}") for genotype in some_genotypes() for kind in KINDS]


@functools.cache
def drawn(genotype, kind):
    """The figure after drawing, its texts with their places, and its patches of each sort."""
    figure = draw_cell(genotype, kind)
    figure_to_rgb(figure)
    axes = figure.axes[0]
    texts = {text: text.get_window_extent() for text in axes.texts if text.get_text()}
    patches = {sort: [p for p in axes.patches if isinstance(p, sort)] for sort in (FancyBboxPatch, PathPatch, Circle)}
    return figure, texts, patches


def overlap(one, other):
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


@pytest.mark.parametrize(("genotype", "kind"), CELLS)
def test_no_label_overlaps_another_or_leaves_the_picture(genotype, kind):
    figure, texts, _ = drawn(genotype, kind)
    for (one, place), (other, other_place) in itertools.combinations(texts.items(), 2):
        assert not overlap(place, other_place), (one.get_text(), other.get_text())
    for text, place in texts.items():
        assert figure.bbox.x0 <= place.x0, text
        assert figure.bbox.y0 <= place.y0, text
        assert place.x1 <= figure.bbox.x1, text
        assert place.y1 <= figure.bbox.y1, text


@pytest.mark.parametrize(("genotype", "kind"), CELLS)
def test_boxes_hold_their_label_and_nothing_else(genotype, kind):
    _, texts, patches = drawn(genotype, kind)
    boxes = [patch.get_window_extent() for patch in patches[FancyBboxPatch]]
    for one, other in itertools.combinations(boxes, 2):
        assert not overlap(one, other)
    for box in boxes:
        held = [place for place in texts.values() if overlap(box, place)]
        assert len(held) == 1
        assert box.containsx(held[0].x0)
        assert box.containsx(held[0].x1)
        assert box.containsy(held[0].y0)
        assert box.containsy(held[0].y1)


@pytest.mark.parametrize(("genotype", "kind"), CELLS)
def test_no_wire_runs_through_a_box_or_a_block_of_others(genotype, kind):
    figure, _, patches = drawn(genotype, kind)
    blocks = [
        circle for circle in patches[Circle] if circle.get_radius() > 0.1
    ]  # the small ones are where wires branch
    obstacles = [patch.get_window_extent().padded(-2) for patch in (*patches[FancyBboxPatch], *blocks)]
    wires = [patch.get_path().transformed(patch.get_transform()) for patch in patches[PathPatch]]
    wires += [line.get_path().transformed(line.get_transform()) for line in figure.axes[0].lines]
    assert len(wires) == 5 * genotype.blocks + 2
    for wire in wires:
        for box in obstacles:
            own = box.contains(*wire.vertices[0]) or box.contains(*wire.vertices[-1])  # what it joins
            assert own or not wire.intersects_bbox(box, filled=False)


@pytest.mark.parametrize(("genotype", "kind"), CELLS)
def test_wires_join_what_the_genotype_says(genotype, kind):
    """Follows each coloured wire back to the row of its source, and on to the row of its block."""
    figure, texts, patches = drawn(genotype, kind)
    axes = figure.axes[0]
    names = {text.get_text(): text.get_position() for text in texts}
    rows = [names["cₖ₋₂"][1] + 0.005, names["cₖ₋₁"][1] + 0.005]
    rows += [names[str(block + 2)][1] for block in range(genotype.blocks)]
    labels = sorted((t for t in texts if t.get_text() in OPERATION_NAMES), key=lambda t: t.get_position()[0])
    seen = []
    wires = [(patch.get_path().vertices, to_hex(patch.get_edgecolor())) for patch in patches[PathPatch]]
    for label in labels:
        (x, y), operation = label.get_position(), label.get_text()
        y += 0.005
        (down,) = [
            v for v, colour in wires if np.allclose(v[-1], (x - 0.53, y)) and colour == OPERATION_COLOURS[operation]
        ]
        (join,) = [
            v for v, colour in wires if np.allclose(v[0], (x + 0.53, y)) and colour == OPERATION_COLOURS[operation]
        ]
        source = int(np.argmin(np.abs(np.array(rows) - down[0][1])))
        block = int(np.argmin(np.abs(np.array(rows) - join[-1][1]))) - 2
        assert rows[source] == pytest.approx(down[0][1])
        assert abs(rows[block + 2] - y) < 0.3  # beside its block
        assert _on_a_line(axes, down[0])
        seen.append((block, operation, source))
    expected = [(i, op, source) for i, block in enumerate(getattr(genotype, kind)) for op, source in block]
    assert sorted(seen) == sorted(expected)


def _on_a_line(axes, point):
    """Whether a horizontal wire passes here."""
    ends = [line.get_xydata() for line in axes.lines]
    return any(np.isclose(a[1], point[1]) and a[0] <= point[0] <= b[0] + 1e-9 for a, b in ends)


@pytest.mark.parametrize("genotype", Genotype.presets().values(), ids=lambda genotype: genotype.name)
def test_every_block_reaches_the_output(genotype):
    figure, texts, _ = drawn(genotype, "normal")
    (bar,) = [text.get_position()[0] for text in texts if text.get_text() == "concat"]
    reaching = {line.get_ydata()[0] for line in figure.axes[0].lines if line.get_xdata()[1] > bar - 0.2}
    assert reaching == {t.get_position()[1] for t in texts if t.get_text() in {"2", "3", "4", "5"}}


def test_operations_have_colours_of_their_own_and_the_part_aware_one_stands_out():
    assert set(OPERATION_COLOURS) == set(OPERATION_NAMES)
    assert len(set(OPERATION_COLOURS.values())) == len(OPERATION_NAMES)
    _, texts, patches = drawn(Genotype.load("retrieval"), "reduce")
    filled = [p for p in patches[FancyBboxPatch] if to_hex(p.get_facecolor()) == OPERATION_COLOURS["part_aware"]]
    assert len(filled) == 1
    assert [text.get_text() for text in texts if text.get_fontweight() == "bold"] == ["part_aware", "reduction cell"]


def test_an_unknown_kind_of_cell_is_named():
    with pytest.raises(UserError, match=r"'reduction'.*normal, reduce"):
        draw_cell(Genotype.load("retrieval"), "reduction")


def test_a_figure_becomes_the_picture_that_tensorboard_takes():
    figure = draw_cell(Genotype.load("retrieval"))
    picture = figure_to_rgb(figure)
    width, height = (round(inches * figure.dpi) for inches in figure.get_size_inches())
    assert picture.dtype == np.uint8
    assert abs(picture.shape[1] - height) <= 1
    assert abs(picture.shape[2] - width) <= 1
    assert picture.shape[0] == 3
    assert picture.flags["C_CONTIGUOUS"]
    assert (picture[:, 0, 0] == 255).all()
    red = np.array([0xD1, 0x27, 0x4B])[:, None, None]
    assert not (picture == red).all(axis=0).any()  # no part-aware edge here …
    assert (figure_to_rgb(draw_cell(Genotype.load("retrieval"), "reduce")) == red).all(
        axis=0
    ).sum() > 500  # … one there


def test_the_heat_map_shows_every_probability_in_its_place(make_record):
    record = make_record(2, 4)
    rows, cell = record["probabilities"]["normal"], Genotype.from_dict(record["genotype"]).normal
    figure = draw_alphas(rows, record["operations"], r"$\frac$", cell=cell)
    figure_to_rgb(figure)
    axes = figure.axes[0]
    assert axes.get_title() == r"$\frac$"
    assert [label.get_text() for label in axes.get_xticklabels()] == list(OPERATION_NAMES)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"{source} → {block + 2}" for _, block, source in cell_edges(4)]
    assert np.array_equal(axes.images[0].get_array(), rows)
    for text in axes.texts:
        column, row = text.get_position()
        assert text.get_text() == f"{rows[int(row)][int(column)]:.2f}"
    assert len(axes.texts) == 14 * 7
    frames = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)]
    framed = {(names[int(y + 0.5)], OPERATION_NAMES[int(x + 0.5)]) for x, y in frames}
    assert framed == {(f"{source} → {i + 2}", op) for i, block in enumerate(cell) for op, source in block}


def test_heat_maps_with_one_scale_can_be_compared():
    even, decided = [[0.5, 0.5]] * 2, [[0.9, 0.1]] * 2
    shades = [
        draw_alphas(rows, ["none", "skip_connect"], top=0.9).axes[0].images[0].to_rgba(np.array([[0.5]]))
        for rows in (even, decided)
    ]
    assert np.array_equal(*shades)


@pytest.mark.parametrize("rows", [[[0.5, 0.5]] * 3, [[0.2, 0.3, 0.5]] * 2, [0.5, 0.5], []])
def test_probabilities_that_fit_no_cell_are_refused(rows):
    with pytest.raises(UserError, match="fit no cell with 2 operations"):
        draw_alphas(rows, ["none", "skip_connect"])


def lines_of(figure, title):
    (panel,) = [axes for axes in figure.axes if axes.get_title() == title]
    return {line.get_label(): line for line in panel.lines}


def test_the_curves_are_the_records(records, parsed):
    figure = draw_history(parsed(records))
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert len(panels) == 8
    for title, names in (("losses", ("loss", "loss_softmax", "loss_triplet")), ("accuracy", ("top1", "top5", "top10"))):
        shown = [(line.get_linestyle(), line.get_xydata().tolist()) for line in panels[title].lines]
        for name in names:
            assert ("-", [[r["epoch"], r["w"][name]] for r in records]) in shown
            # The first epoch warms up: nothing has trained alpha in it.
            assert ("--", [[r["epoch"], r["alpha"][name]] for r in records[1:]]) in shown
        assert len(shown) == 6
    measured = [r for r in records if r["retrieval"]]
    for name, line in lines_of(figure, "retrieval in the held-out half").items():
        assert line.get_xydata().tolist() == [[r["epoch"], r["retrieval"][name]] for r in measured]
    rates = lines_of(figure, "learning rates")
    assert rates["w"].get_ydata().tolist() == [r["lr"]["w"] for r in records]
    assert rates["α"].get_ydata().tolist() == [r["lr"]["alpha"] for r in records]
    for title, key in (("mean probability of none", "none_mass"), ("skip connections in the genotype", "skips")):
        lines = lines_of(figure, title)
        assert lines["normal cell"].get_ydata().tolist() == [r[key]["normal"] for r in records]
        assert lines["reduction cell"].get_ydata().tolist() == [r[key]["reduce"] for r in records]
    for title, kind in (("operations, normal cell", "normal"), ("operations, reduction cell", "reduce")):
        lines = lines_of(figure, title)
        for place, name in enumerate(OPERATION_NAMES):
            means = [sum(row[place] for row in r["probabilities"][kind]) / 14 for r in records]
            assert lines[name].get_ydata() == pytest.approx(means)
            assert lines[name].get_color() == OPERATION_COLOURS[name]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("columns", [1, 3, 4])
def test_a_search_of_one_epoch_without_retrieval_and_with_rates_of_zero_is_drawn(make_record, columns, parsed):
    record = make_record(1, 1, blocks=1, operations=SPACES["standard"])
    record["lr"] = {"w": 0.0, "alpha": 0.0}
    figure = draw_history(parsed([record]), columns)
    assert figure_to_rgb(figure).shape[0] == 3
    assert sum(axes.axison for axes in figure.axes) == 8
    assert "retrieval: not measured yet" in [axes.get_title() for axes in figure.axes]


def test_the_curves_of_the_cost_are_the_records_and_the_limit(limited_records, parsed):
    macs, latency = draw_costs(parsed(limited_records)).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in macs.get_lines()}
    assert lines["expected"] == [1.75e9, 1.5e9, 1.25e9, 1e9]
    assert (lines["derived"], lines["kept"]) == ([1.2e9] * 4, [9e8] * 4)
    assert lines["limit"] == [1e9, 1e9]
    assert [line.get_label() for line in latency.get_lines()] == ["derived", "kept", "limit"]


def test_neither_pyplot_nor_the_callers_style_is_touched_or_shows(records, parsed):
    genotype = Genotype.load("retrieval")
    pictures = [figure_to_rgb(draw_cell(genotype)), figure_to_rgb(draw_history(parsed(records)))]
    with matplotlib.rc_context({"font.family": "monospace", "font.size": 20, "figure.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        again = [figure_to_rgb(draw_cell(genotype)), figure_to_rgb(draw_history(parsed(records)))]
        assert dict(matplotlib.rcParams) == before
    assert not plt.get_fignums()
    for picture, other in zip(pictures, again, strict=True):
        assert np.array_equal(picture, other)
