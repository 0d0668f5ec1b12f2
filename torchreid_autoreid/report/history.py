"""Reads ``history.jsonl``, the diary of a search. Nothing in it is trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import naming
from ..genotype import KINDS
from ..records import SearchRecord

__all__ = ["read_history", "read_lines"]

_MAX_BYTES = 32 << 20  # some 3000 epochs of the usual cell
_MAX_LINE = 1 << 20  # a line of it has some 8 kB


def read_history(path: str | Path) -> tuple[list[SearchRecord], bool]:
    """The records of a search's history, and whether its last line was torn (a crash, or an epoch being written).

    Raises:
        UserError: if the file is missing, empty or absurdly large, or a line is not the record of an epoch; the message
            names the line and what is wrong with it.
    """
    records: list[SearchRecord] = []
    lines, torn = read_lines(path)
    if isinstance(lines[0], dict) and "train" in lines[0]:
        raise UserError(f"{path} is of a training; give the data.save_dir of a search (and this one to --trained)")
    for number, line in enumerate(lines, start=1):
        try:
            record = SearchRecord.from_dict(line)
            _check_follows(record, records)
        except (ValueError, OverflowError) as error:
            raise UserError(f"line {number} of {path} is no record of a search: {error}") from None
        records.append(record)
    return records, torn


def read_lines(path: str | Path) -> tuple[list[Any], bool]:
    """The JSON lines of a history of any kind of run, and whether the last one was torn.

    Raises:
        UserError: if the file is missing, empty or absurdly large, or a line is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {path.name}, so it is no log of a search; give its data.save_dir")
    with naming(path):
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise UserError(f"{path} has {size} bytes, which is no history of a search (at most {_MAX_BYTES})")
        lines = path.read_bytes().split(b"\n")
    rest = lines.pop()  # what follows the last line feed: nothing, unless the line is torn
    records: list[Any] = []
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        if len(line) > _MAX_LINE:
            raise UserError(f"line {number} of {path} has {len(line)} bytes, which is no record of a search")
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            if records and number > len(lines):
                return records, True
            raise UserError(f"line {number} of {path} is not JSON; restore the file, or search again") from None
    if not records:
        raise UserError(f"{path} is empty: no epoch has ended yet; wait for the first one")
    return records, False


def _check_follows(record: SearchRecord, before: Sequence[SearchRecord]) -> None:
    """Raises ValueError where a record does not continue the ones before it."""
    if not before:
        return
    if record.epoch <= before[-1].epoch:
        raise ValueError(f"epoch {record.epoch} follows epoch {before[-1].epoch}")
    if record.limits() != before[0].limits():
        raise ValueError("its limits are not those of the first line")
    if _shape(record) != _shape(before[0]):
        raise ValueError("its operations or blocks are not those of the first line")


def _shape(record: SearchRecord) -> tuple[object, ...]:
    return record.operations, *(len(record.probabilities[kind]) for kind in KINDS)
