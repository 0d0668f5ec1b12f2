"""Genotypes: validation, JSON, presets, derivation."""

import json

import numpy as np
import pytest

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import OPERATION_NAMES, SPACES, Genotype, cell_edges, derive, num_edges


def random_probabilities(rng, edges=14, operations=7):
    return rng.dirichlet(np.ones(operations), size=edges)


def random_genotype(rng, blocks):
    def cell():
        return [
            [(str(rng.choice(OPERATION_NAMES)), int(rng.integers(0, i + 2))) for _ in range(2)] for i in range(blocks)
        ]

    return Genotype("random", cell(), cell())


def brute_force_cell(rows, operations):
    """The published rule, spelt out: sort all edges of a block by their best operation other than none."""
    none = operations.index("none")
    cell, offset = [], 0
    block = 0
    while offset < len(rows):
        candidates = []
        for source in range(block + 2):
            row = rows[offset + source]
            best = max((j for j in range(len(operations)) if j != none), key=lambda j: row[j])
            candidates.append((-row[best], source, operations[best]))
        candidates.sort()
        cell.append(tuple((name, source) for _, source, name in candidates[:2]))
        offset += block + 2
        block += 1
    return tuple(cell)


@pytest.mark.parametrize("blocks", [1, 2, 4, 6])
def test_round_trip_through_json(tmp_path, blocks):
    rng = np.random.default_rng(blocks)
    for _ in range(20):
        genotype = random_genotype(rng, blocks)
        genotype.save(tmp_path / "genotype.json")
        assert Genotype.load(tmp_path / "genotype.json") == genotype
        assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype


def test_json_format_is_the_documented_one(tmp_path):
    Genotype.load("retrieval").save(tmp_path / "g.json")
    content = json.loads((tmp_path / "g.json").read_text())
    assert list(content) == ["version", "name", "normal", "reduce"]
    assert content["version"] == 1
    assert content["normal"][0] == [["sep_conv_3x3", 0], ["skip_connect", 1]]


def test_presets_are_the_published_cells():
    presets = Genotype.presets()
    assert set(presets) == {"retrieval", "baseline_reid_space", "baseline"}
    assert presets["retrieval"].reduce == (
        (("max_pool_3x3", 0), ("part_aware", 1)),
        (("sep_conv_3x3", 0), ("dil_conv_3x3", 2)),
        (("dil_conv_3x3", 2), ("max_pool_3x3", 0)),
        (("dil_conv_3x3", 4), ("dil_conv_3x3", 3)),
    )
    assert presets["baseline_reid_space"].count("part_aware") == {"normal": 0, "reduce": 2}
    assert presets["baseline"].count("part_aware") == {"normal": 0, "reduce": 0}


@pytest.mark.parametrize("space", sorted(SPACES))
def test_derivation_equals_brute_force(space):
    rng = np.random.default_rng(7)
    operations = SPACES[space]
    for _ in range(50):
        normal, reduce = (random_probabilities(rng, 14, len(operations)) for _ in range(2))
        genotype = derive(normal.tolist(), reduce.tolist(), operations)
        assert genotype.normal == brute_force_cell(normal, operations)
        assert genotype.reduce == brute_force_cell(reduce, operations)


def test_none_is_never_derived():
    rows = [[0.01] * 7 for _ in range(14)]
    for row in rows:
        row[OPERATION_NAMES.index("none")] = 0.94
    assert derive(rows, rows).count("none") == {"normal": 0, "reduce": 0}


def test_edges_are_numbered_block_by_block():
    edges = list(cell_edges(4))
    assert len(edges) == num_edges(4) == 14
    assert edges[:5] == [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 1, 2)]


GOOD = Genotype.load("retrieval").to_dict()


def change(**values):
    return {**json.loads(json.dumps(GOOD)), **values}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (change(normal=[[["sep_conv_3x", 0], ["none", 1]]] * 4), "sep_conv_3x3"),
        (change(normal=[[["none", 2], ["none", 1]]] * 4), "input 2 of normal block 0"),
        (change(reduce=[[["none", -1], ["none", 1]]] * 4), "input -1 of reduce block 0"),
        (change(reduce=[[["none", True], ["none", 1]]] * 4), "input True"),
        (change(reduce=[[["none", 0], ["none", 1]]]), "the same number"),
        (change(normal=[[["none", 0]]] * 4), "two edges"),
        (change(normal=[]), "1 to 16 blocks"),
        (change(normal="none"), "list of 1 to 16 blocks"),
        (change(normal=[[["none", 0], "none"]] * 4), r"\[operation, input\]"),
        (change(normal=[[[["none"], 0], ["none", 0]]] * 4), "unknown operation"),
        (change(version=2), "version 2"),
        (change(name=""), "name"),
        (change(extra=1), "'extra'"),
        ({k: v for k, v in GOOD.items() if k != "reduce"}, "'reduce'"),
        ([1, 2], "JSON object"),
    ],
)
def test_wrong_content_is_named(tmp_path, content, message):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        Genotype.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "torn.json").write_text('{"version": 1,')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "large.json").write_bytes(b" " * ((1 << 20) + 1))
    for name, message in (("torn", "not valid JSON"), ("deep", "not valid JSON"), ("large", "bytes")):
        with pytest.raises(UserError, match=message):
            Genotype.load(tmp_path / f"{name}.json")
    with pytest.raises(UserError, match="did you mean retrieval"):
        Genotype.load("retreival")
    with pytest.raises(UserError, match="preset"):
        Genotype.load(tmp_path)


def test_derivation_refuses_what_fits_no_cell():
    with pytest.raises(UserError, match="13 normal edges"):
        derive([[0.1] * 7] * 13, [[0.1] * 7] * 14)
    with pytest.raises(UserError, match="not finite"):
        derive([[float("nan")] * 7] * 14, [[0.1] * 7] * 14)
    with pytest.raises(UserError, match="6 strengths"):
        derive([[0.1] * 6] * 14, [[0.1] * 7] * 14)


# -- caps and edge weights --------------------------------------------------------------------------------------------


def skip_heavy(seed, edges=14):
    rows = np.random.default_rng(seed).dirichlet(np.ones(7), size=edges)
    rows[:, 6] += np.random.default_rng(seed + 1).uniform(0, 0.5, size=edges)
    return rows.tolist()


@pytest.mark.parametrize("cap", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_a_skip_cap_is_kept_by_the_next_best(seed, cap):
    normal, reduce = skip_heavy(seed), skip_heavy(seed + 50)
    free = derive(normal, reduce)
    capped = derive(normal, reduce, skip_cap=cap)
    assert capped.reduce == free.reduce  # the cap is of the normal cell
    assert capped.count("skip_connect")["normal"] <= cap
    if free.count("skip_connect")["normal"] <= cap:
        assert capped == free
        return
    # Slowly, as P-DARTS says it: while there are too many, the weakest ones are set to 0, and all begins anew.
    rows = [list(row) for row in normal]
    edges = {(block, source): edge for edge, block, source in cell_edges(4)}
    while True:
        found = derive(rows, reduce)
        skips = [(b, s) for b, block in enumerate(found.normal) for name, s in block if name == "skip_connect"]
        if len(skips) <= cap:
            break
        strongest = sorted(skips, key=lambda key: -rows[edges[key]][6])
        for key in strongest[cap:]:
            rows[edges[key]][6] = 0.0
    assert capped.normal == found.normal


def test_a_capped_skip_gives_way_to_the_next_operation_or_the_next_edge():
    low = [0.02, 0.02, 0.02, 0.02, 0.02, 0.0, 0.9]
    first = [[0.0, 0.0, 0.0, 0.3, 0.1, 0.0, 0.6], [0.0, 0.0, 0.0, 0.1, 0.1, 0.0, 0.8]]
    second = [low, [0.0, 0.0, 0.0, 0.5, 0.2, 0.3, 0.0], [0.0, 0.0, 0.0, 0.2, 0.6, 0.2, 0.0]]
    cell = first + second
    assert derive(cell, cell).count("skip_connect")["normal"] == 3
    assert derive(cell, cell, skip_cap=1).normal == (
        (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
        (("skip_connect", 0), ("dil_conv_3x3", 2)),
    )
    assert derive(cell, cell, skip_cap=0).normal[1] == (("dil_conv_3x3", 2), ("sep_conv_3x3", 1))


def test_a_cap_that_leaves_an_edge_nothing_is_refused():
    rows = [[0.1, 0.9]] * 2
    with pytest.raises(UserError, match="skip cap of 0 leaves normal edge 0 no operation"):
        derive(rows, rows, ["none", "skip_connect"], skip_cap=0)
