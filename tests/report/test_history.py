"""Nothing in a history is trusted: a torn last line is forgiven, everything else is named in one line."""

import json
import re

import pytest

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import SPACES, Genotype
from torchreid_autoreid.records import SearchRecord
from torchreid_autoreid.report import history
from torchreid_autoreid.report.history import read_history


@pytest.fixture
def path(tmp_path, write_history, records):
    return write_history(tmp_path / "history.jsonl", records)


def read(path):
    records, torn = read_history(path)
    return [record.to_dict() for record in records], torn


def test_a_history_is_read_as_it_was_written(path, records):
    assert read(path) == (records, False)


def test_one_block_and_the_standard_space_are_read_too(tmp_path, write_history, make_record):
    records = [make_record(epoch, 2, blocks=1, operations=SPACES["standard"]) for epoch in (1, 2)]
    assert read(write_history(tmp_path / "history.jsonl", records)) == (records, False)


def test_a_torn_last_line_is_left_out_wherever_it_tore(path, records):
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in (start + 1, start + 20, (start + len(whole)) // 2, len(whole) - 2):
        path.write_bytes(whole[:end])
        assert read(path) == (records[:-1], True)
    path.write_bytes(whole[:-1])  # nothing but its line feed is missing
    assert read(path) == (records, False)
    path.write_bytes(whole[:start] + b"\0" * 500)  # what a power failure may leave
    assert read(path) == (records[:-1], True)


def test_a_torn_line_elsewhere_is_named(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:100] + "\n" + lines[2])
    with pytest.raises(UserError, match=r"line 2 of .*history\.jsonl is not JSON"):
        read_history(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: no epoch has ended yet"),
        (b"{", "line 1 .* is not JSON"),
        (b"\n", "line 1 .* is not JSON"),
        (b"\x89PNG\r\n\x1a\n", "line 1 .* is not JSON"),
        (b"\xff\xfe{}\n", "line 1 .* is not JSON"),
        (b"[" * 100_000 + b"\n", "line 1 .* is not JSON"),
        (b"[]\n", "epochs is missing"),
        (b"null\n", "epochs is missing"),
        (b"{}\n", "epochs is missing"),
    ],
)
def test_what_is_no_history_is_refused(tmp_path, content, message):
    path = tmp_path / "history.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_history(path)
    assert "\n" not in str(error.value)


def test_a_missing_or_absurdly_large_history_is_refused(path, monkeypatch):
    with pytest.raises(UserError, match=r"holds no gone\.jsonl, so it is no log of a search"):
        read_history(path.with_name("gone.jsonl"))
    monkeypatch.setattr(history, "_MAX_BYTES", 1000)
    with pytest.raises(UserError, match=f"has {path.stat().st_size} bytes, which is no history"):
        read_history(path)


def test_the_history_of_a_training_is_called_that(path):
    path.write_text('{"epoch": 1, "train": {"loss": 1.0}}\n')
    with pytest.raises(UserError, match=r"is of a training; give the data\.save_dir of a search"):
        read_history(path)


HUGE = 10**400

#: where, what to put there, what the message says
WRONG = [
    ("epoch", 0, "epoch is 0, not between 1 and 4"),
    ("epoch", 5, "epoch is 5, not between 1 and 4"),
    ("epoch", 1, "epoch 1 follows epoch 1"),
    ("epoch", 2.0, "epoch is 2.0, not a whole number"),
    ("epoch", True, "epoch is True, not a whole number"),
    ("epochs", "4", "epochs is '4', not a whole number"),
    ("epochs", HUGE, "int too large"),
    ("seconds", -1, "seconds is -1"),
    ("seconds", float("nan"), "seconds is nan, not a number"),
    ("seconds", HUGE, "int too large"),
    ("w", None, "w.loss is missing"),
    ("w", [1], "w.loss is missing"),
    ("w.loss", float("inf"), "w.loss is inf, not a number"),
    ("w.top1", 68.4, "w.top1 is 68.4, not between 0 and 1"),
    ("alpha", {}, "alpha.loss is missing"),
    ("alpha.top10", "x" * 1000, "alpha.top10 is 'xxxxx.*…, not a number"),
    ("lr", {"w": 0.1}, "lr.alpha is missing"),
    ("lr.w", -0.1, "lr.w is -0.1"),
    ("operations", [], "operations is no list of names"),
    ("operations", ["none"] * 7, "operations has 'none'.*each once"),
    ("operations", [["none"]], r"operations has \['none'\]"),
    ("operations", ["<script>"], "operations has '<script>'"),
    ("operations", ["none", "skip_connect"], "probabilities.normal row 0 does not have 2 values"),
    ("probabilities.normal", [], "no cell's number of edges"),
    ("probabilities.reduce", [[1 / 7] * 7] * 13, "probabilities.reduce has no cell's number of edges"),
    ("probabilities.reduce", [[1 / 7] * 7] * 170, "no cell's number of edges"),
    ("probabilities.reduce", [[1 / 7] * 7] * 13 + [[1.0]], "probabilities.reduce row 13 does not have 7 values"),
    ("probabilities.reduce", [[1 / 7] * 7] * 13 + [[None] * 7], "probabilities.reduce row 13 is None, not a number"),
    ("probabilities.reduce", [[7.0] * 7] * 14, "probabilities.reduce row 0 is 7.0, not between 0 and"),
    ("probabilities.reduce", [[1 / 7] * 7] * 2, "its operations or blocks are not those of the first line"),
    ("probabilities.normal", [[1 / 7] * 7] * 9, "the genotype has 4 blocks"),
    ("none_mass.normal", 1.5, "none_mass.normal is 1.5"),
    ("skips.reduce", 0.5, "skips.reduce is 0.5, not a whole number"),
    ("retrieval", {}, "retrieval.mAP is missing"),
    ("retrieval.mINP", 30, "retrieval.mINP is 30, not between 0 and 1"),
    ("retrieval.num_valid_queries", -1, "num_valid_queries is -1"),
    ("ended", 3, "ended is 3, not a short text"),
    ("ended", "x" * 2000, "ended is 'xxxxx.*…, not a short text"),
    ("genotype", {}, "a genotype needs the key 'name'"),
    ("genotype.normal", [[["sep_conv", 0], ["none", 1]]], "unknown operation 'sep_conv'"),
]


CANDIDATE = {
    "number": 2,
    "rung": 1,
    "genotype": Genotype.load("baseline").to_dict(),
    "score": 0.5,
    "figure": "auc",
    "parent": 1,
    "cost": 2.5,
}
DIAGNOSIS = {"alpha_gradient": {"triplet": 0.5}, "entropy": {"normal": 0.9, "reduce": 1.0}, "changed_edges": None}
OPTIONAL = {"scheduled": {"tau": 0.1}, "diagnosis": DIAGNOSIS, "candidate": CANDIDATE, "ended": "enough"}
WRONG_OPTIONAL = [
    ("scheduled", [], "scheduled is [], not by name"),
    ("scheduled", {"tau": "hot"}, "scheduled.'tau' is 'hot', not a number"),
    ("diagnosis", 1, "diagnosis is 1, not by name"),
    ("diagnosis", {"entropy": {}}, "diagnosis.alpha_gradient is missing"),
    ("diagnosis", DIAGNOSIS | {"alpha_gradient": [1]}, "diagnosis.alpha_gradient is [1], not by part of the loss"),
    ("diagnosis", DIAGNOSIS | {"alpha_gradient": {"x": None}}, "diagnosis.alpha_gradient.'x' is None, not a number"),
    ("diagnosis", DIAGNOSIS | {"entropy": {"normal": 2.0}}, "diagnosis.entropy.normal is 2.0, not between 0 and"),
    ("diagnosis", DIAGNOSIS | {"changed_edges": 0.5}, "diagnosis.changed_edges is 0.5, not a whole number"),
    ("candidate", [1], "candidate.number is missing"),
    ("candidate", CANDIDATE | {"rung": 0}, "candidate.rung is 0, not between 1"),
    ("candidate", CANDIDATE | {"score": 50}, "candidate.score is 50, not between 0 and"),
    ("candidate", CANDIDATE | {"figure": "rank1"}, "candidate.figure is 'rank1', none of mAP, auc"),
    ("candidate", CANDIDATE | {"figure": ["mAP"]}, "candidate.figure is ['mAP'], none of mAP, auc"),
    ("candidate", CANDIDATE | {"parent": 1.5}, "candidate.parent is 1.5, not a whole number"),
    ("candidate", CANDIDATE | {"genotype": None}, "genotype"),
]


def test_what_only_some_searches_record_is_read_as_it_was_written(make_record):
    record = make_record(2, 4) | OPTIONAL
    found = SearchRecord.from_dict(record)
    assert found.to_dict() == record
    assert found.candidate.genotype == Genotype.load("baseline")
    assert not set(OPTIONAL) & set(SearchRecord.from_dict(make_record(2, 4)).to_dict())


@pytest.mark.parametrize(("name", "value", "message"), WRONG_OPTIONAL)
def test_what_only_some_searches_record_is_checked_too(make_record, name, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SearchRecord.from_dict(make_record(2, 4) | OPTIONAL | {name: value})


@pytest.mark.parametrize(("where", "value", "message"), WRONG)
def test_a_value_that_is_not_of_the_schema_is_named(tmp_path, records, write_history, where, value, message):
    *outer, last = where.split(".")
    target = records[1]
    for key in outer:
        target = target[key]
    target[last] = value
    path = write_history(tmp_path / "history.jsonl", records)
    with pytest.raises(UserError, match=rf"line 2 of .*history\.jsonl is no record of a search: .*{message}") as error:
        read_history(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("cost", {}, "cost is {}, not by some of params, macs, latency_ms"),
        ("cost", {"flops": {}}, "cost is {'flops': {}}, not by some of"),
        ("cost.macs", 3.0, "cost.macs.limit is missing"),
        ("cost.macs.expected", -1, "cost.macs.expected is -1"),
        ("cost.macs.genotype", float("nan"), "cost.macs.genotype is nan"),
        ("cost.macs.limit", 2.0, "its limits are not those of the first line"),
        ("cost", None, "its limits are not those of the first line"),
        ("cost.macs.expected", "dear", "cost.macs.expected is 'dear'"),
        ("cost.macs.limit", None, "cost.macs.limit is None, not a number"),
        ("cost.latency_ms", {"limit": 20.0}, "cost.latency_ms.expected is missing"),
    ],
)
def test_a_cost_that_is_not_of_the_schema_is_named(tmp_path, limited_records, write_history, where, value, message):
    assert read(write_history(tmp_path / "good.jsonl", limited_records)) == (limited_records, False)
    *outer, last = where.split(".")
    target = limited_records[1]
    for key in outer:
        target = target[key]
    target[last] = value
    path = write_history(tmp_path / "history.jsonl", limited_records)
    with pytest.raises(UserError, match=rf"line 2 of .*history\.jsonl is no record of a search: .*{message}"):
        read_history(path)


def test_every_key_that_is_read_is_asked_for(tmp_path, make_record):
    """A record without any one of its keys is refused, except for the alphas, which the report does not use, and for
    the cost, which a search without limits does not have."""

    def paths(value, before=()):
        for key, inner in value.items():
            yield (*before, key)
            if isinstance(inner, dict):
                yield from paths(inner, (*before, key))

    path = tmp_path / "history.jsonl"
    for keys in paths(make_record(2, 4)):
        record = make_record(2, 4)
        target = record
        for key in keys[:-1]:
            target = target[key]
        del target[keys[-1]]
        path.write_text(json.dumps(record) + "\n")
        if keys[0] in {"alphas", "cost"}:
            assert read(path) == ([{"alphas": {}, "cost": None} | record], False)
        else:
            with pytest.raises(UserError, match=keys[-1]):
                read_history(path)
