"""Reads ``history.jsonl``, the diary of a search. Nothing in it is trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..genotype import KINDS, MAX_BLOCKS, OPERATION_NAMES, Genotype, num_blocks, num_edges

__all__ = ["read_history", "read_lines"]

_MAX_BYTES = 16 << 20  # some 2000 epochs of the usual cell
_MAX_LINE = 1 << 20  # a line of it has some 8 kB
_MAX_REASON = 1000  # characters
_ONE = 1 + 1e-6  # of fractions that were summed in float32

_HALF = ("loss", "loss_softmax", "loss_triplet")
_ACCURACY = ("top1", "top5", "top10")
_MEASURES = ("params", "macs", "latency_ms")
_COSTS = ("limit", "expected", "derived", "genotype", "weight")
_OF_ALPHAS = ("expected", "weight")  # null where there are no alphas
_RETRIEVAL = ("mAP", "rank1", "rank5", "rank10", "mINP")


def read_history(path: str | Path) -> tuple[list[dict[str, Any]], bool]:
    """The records of a search's history, and whether its last line was torn (a crash, or an epoch being written).

    Raises:
        UserError: if the file is missing, empty or absurdly large, or a line is not the record of an epoch; the message
            names the line and what is wrong with it.
    """
    records: list[dict[str, Any]] = []
    lines, torn = read_lines(path)
    for number, record in enumerate(lines, start=1):
        try:
            _check(record, records)
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
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise UserError(f"{path} has {size} bytes, which is no history of a search (at most {_MAX_BYTES})")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
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


def _check(record: Any, before: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError where a record is not of the schema, or does not continue the ones before it."""
    last = _number(record, "epochs", 1, whole=True)
    earlier = before[-1]["epoch"] if before else 0
    if _number(record, "epoch", 1, last, whole=True) <= earlier:
        raise ValueError(f"epoch {record['epoch']} follows epoch {earlier}")
    _number(record, "seconds", 0)
    _check_operations(_get(record, "operations"))
    for half in ("w", "alpha"):
        if _get(record, half) is not None or half == "w":  # alpha is null while it warms up
            for name in _HALF:
                _number(record, f"{half}.{name}")
            for name in _ACCURACY:
                _number(record, f"{half}.{name}", 0, _ONE)
        _number(record, f"lr.{half}", 0)
    for kind in KINDS:
        _check_probabilities(record, kind)
        _number(record, f"none_mass.{kind}", 0, _ONE)
        _number(record, f"skips.{kind}", 0, whole=True)
    _check_cost(record)
    if _get(record, "retrieval") is not None:
        for name in _RETRIEVAL:
            _number(record, f"retrieval.{name}", 0, _ONE)
        _number(record, "retrieval.num_valid_queries", 0, whole=True)
    if not isinstance(ended := record.get("ended", ""), str) or len(ended) > _MAX_REASON:
        raise ValueError(f"ended is {_short(ended)}, not a short text")
    genotype = Genotype.from_dict(_get(record, "genotype"))
    if num_edges(genotype.blocks) != len(record["probabilities"]["normal"]):
        raise ValueError(f"the genotype has {genotype.blocks} blocks, the probabilities have another number")
    if before and _limits(record) != _limits(before[0]):
        raise ValueError("its limits are not those of the first line")
    if before and _shape(record) != _shape(before[0]):
        raise ValueError("its operations or blocks are not those of the first line")


def _check_cost(record: Any) -> None:
    if (cost := record.get("cost")) is None:  # a search without limits
        return
    if not isinstance(cost, dict) or not cost or not set(cost) <= set(_MEASURES):
        raise ValueError(f"cost is {_short(cost)}, not by some of {', '.join(_MEASURES)}")
    for measure in cost:
        for name in _COSTS:
            if name in _OF_ALPHAS and _get(record, f"cost.{measure}.{name}") is None:
                continue
            _number(record, f"cost.{measure}.{name}", 0)


def _check_operations(names: Any) -> None:
    if not isinstance(names, list) or not names:
        raise ValueError("operations is no list of names")
    for position, name in enumerate(names):
        if name not in OPERATION_NAMES or name in names[:position]:
            raise ValueError(f"operations has {_short(name)}; it holds some of {', '.join(OPERATION_NAMES)}, each once")


def _check_probabilities(record: Any, kind: str) -> None:
    where = f"probabilities.{kind}"
    rows, width = _get(record, where), len(record["operations"])
    if not isinstance(rows, list) or not 1 <= (num_blocks(len(rows)) or 0) <= MAX_BLOCKS:
        raise ValueError(f"{where} has no cell's number of edges (1 to {MAX_BLOCKS} blocks)")
    for edge, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width:
            raise ValueError(f"{where} row {edge} does not have {width} values")
        for value in row:
            _checked(value, f"{where} row {edge}", 0, _ONE)


def _shape(record: Mapping[str, Any]) -> tuple[object, ...]:
    return record["operations"], *(len(record["probabilities"][kind]) for kind in KINDS)


def _limits(record: Mapping[str, Any]) -> dict[str, float]:
    return {measure: cost["limit"] for measure, cost in (record.get("cost") or {}).items()}


def _get(record: Any, path: str) -> Any:
    """The value under ``outer.inner``."""
    value = record
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{path} is missing")
        value = value[key]
    return value


def _number(record: Any, path: str, low: float = -math.inf, high: float = math.inf, *, whole: bool = False) -> float:
    return _checked(_get(record, path), path, low, high, whole=whole)


def _checked(value: Any, where: str, low: float, high: float, *, whole: bool = False) -> float:
    """A finite number within limits; JSON's true, NaN, and numbers that no float can hold are none."""
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where} is {_short(value)}, not a {'whole ' if whole else ''}number")
    if not low <= value <= high:
        raise ValueError(f"{where} is {value}, not between {low} and {high}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
