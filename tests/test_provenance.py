"""Where a run was made: its starts are kept, not without end, and a damaged file stops nothing."""

import json
import re

import pytest

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.provenance import FILE, Provenance, Start, note_start


def start(epoch):
    return Start.now(epoch, "a device", 2, ["/somewhere/autoreid", "search", "data.save_dir", "a b"])


def test_every_start_is_noted_and_the_first_one_is_never_lost(tmp_path):
    first = start(1)
    assert first.command == "autoreid search data.save_dir 'a b'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", first.date)
    assert first.machine.endswith("CPUs, a device, 2 processes")
    assert {"torchreid_autoreid", "Python"} <= first.versions.keys()
    for epoch in range(1, 61):
        note_start(tmp_path, {"images": "12"}, start(epoch))
    found = Provenance.load(tmp_path / FILE)
    assert [one.epoch for one in found.starts] == [1, *range(12, 61)]
    assert found.data == {"images": "12"}


def test_the_module_is_named_as_it_is_started():
    assert Start.now(1, "", argv=["/x/torchreid_autoreid/__main__.py", "search"]).command == (
        "python -m torchreid_autoreid search"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"starts": []}', b"[" * 100_000, b" " * (2 << 20)])
def test_a_damaged_file_is_refused_by_readers_and_replaced_by_a_run(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"provenance\.json does not say where a run was made: .*; remove it$"):
        Provenance.load(tmp_path / FILE)
    note_start(tmp_path, {}, start(5))
    assert [one.epoch for one in Provenance.load(tmp_path / FILE).starts] == [5]


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": True},
        {"epoch": 0},
        {"command": None},
        {"command": "x" * 9999},
        {"versions": {"torch": 2}},
        {"date": []},
    ],
)
def test_another_schema_is_refused(tmp_path, changes):
    note_start(tmp_path, {}, start(1))
    content = json.loads((tmp_path / FILE).read_text())
    content["starts"][0] |= changes
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not say where a run was made"):
        Provenance.load(tmp_path / FILE)
