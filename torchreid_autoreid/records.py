"""What is recorded of an epoch: the schema of ``history.jsonl``, of the report, of TensorBoard and of the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import UserError, short
from .genotype import KINDS, MAX_BLOCKS, OPERATION_NAMES, Genotype, num_blocks, num_edges
from .keys import RANKED_BY

__all__ = ["CandidateRecord", "EpochRecord", "PretrainingRecord", "SearchRecord", "TrainingRecord", "check_records"]

Figures = Mapping[str, float]

_MAX_REASON = 1000  # characters
_ONE = 1 + 1e-6  # of fractions that were summed in float32

_HALF = ("loss", "loss_softmax", "loss_triplet")
_ACCURACY = ("top1", "top5", "top10")
_MEASURES = ("params", "macs", "latency_ms")
_COSTS = ("limit", "expected", "derived", "genotype", "weight")
_OF_ALPHAS = ("expected", "weight")  # null where there are no alphas
_RETRIEVAL = ("mAP", "rank1", "rank5", "rank10", "mINP")


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """What the epochs of all runs have in common.

    Attributes:
        epoch: its number, from 1.
        epochs: of the whole run.
        seconds: that it took, with its evaluation.
        ended: why the run ended with this epoch, if it ended before its last one.
    """

    epoch: int
    epochs: int
    seconds: float
    ended: str = field(default="", metadata={"optional": True})

    def to_dict(self) -> dict[str, Any]:
        """A line of ``history.jsonl``; what is optional and empty is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        optional = {f.name for f in fields(self) if f.metadata.get("optional")}
        return {name: _plain(value) for name, value in values.items() if value or name not in optional}


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(EpochRecord):
    """An epoch of a training.

    Attributes:
        lr: learning rate at its end.
        train: means of the figures of all steps: losses, and accuracies as fractions.
        retrieval: on the validation set, as fractions, with ``num_valid_queries``; ``None`` if it was not measured.
    """

    lr: float
    train: Figures
    retrieval: Figures | None


@dataclass(frozen=True, kw_only=True)
class PretrainingRecord(EpochRecord):
    """An epoch of a pre-training.

    Attributes:
        lr: learning rate at its end.
        train: means of the figures of all steps.
        val: top-1 and top-5 accuracy on the validation set, as fractions.
    """

    lr: float
    train: Figures
    val: Figures


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """The candidate that an epoch trains, where a search trains candidates.

    Attributes:
        number: in its rung, from 1.
        rung: from 1.
        genotype: that is trained.
        score: by which it is ranked, at the end of its turn, as a fraction; ``None`` before.
        figure: which one that is, a name of :data:`~torchreid_autoreid.keys.RANKED_BY`.
        parent: number of the candidate whose weights it inherited; ``None`` if it has none.
        cost: the second objective of the search; ``None`` without one.
    """

    number: int
    rung: int
    genotype: Genotype
    score: float | None = None
    figure: str = "mAP"
    parent: int | None = None
    cost: float | None = None

    @property
    def label(self) -> str:
        """The name of the score, for people."""
        return RANKED_BY[self.figure]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a line of ``history.jsonl``."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, record: Any) -> CandidateRecord:
        """The inverse of :meth:`to_dict`, of the record around it.

        Raises:
            ValueError: if a value is not of the schema.
        """
        for name in ("number", "rung"):
            _number(record, f"candidate.{name}", 1, whole=True)
        found = record["candidate"]
        for name, high, whole in (("score", _ONE, False), ("parent", math.inf, True), ("cost", math.inf, False)):
            if found.get(name) is not None:
                _number(record, f"candidate.{name}", 0, high, whole=whole)
        if _get(record, "candidate.figure") not in tuple(RANKED_BY):  # of what JSON has, lists are no keys
            raise ValueError(f"candidate.figure is {short(found['figure'])}, none of {', '.join(RANKED_BY)}")
        genotype = Genotype.from_dict(_get(record, "candidate.genotype"))
        values = {name: found.get(name) for name in ("number", "rung", "score", "figure", "parent", "cost")}
        return cls(genotype=genotype, **values)


@dataclass(frozen=True, kw_only=True)
class SearchRecord(EpochRecord):
    """An epoch of a search.

    Attributes:
        operations: of the search space, in the order of the columns of ``probabilities``.
        w: means of the figures of all steps of the weights: losses, and accuracies as fractions.
        alpha: the same of the alphas; ``None`` while they are frozen, or where there are none.
        lr: learning rates of both, ``{'w': …, 'alpha': …}``.
        alphas: the parameters themselves, by name.
        probabilities: (E, O) of each cell, ``{'normal': …, 'reduce': …}``; so are the following.
        none_mass: mean probability of ``none``.
        skips: skip connections in the genotype.
        genotype: the answer so far.
        retrieval: on the held-out half, as fractions, with ``num_valid_queries``; ``None`` if it was not measured.
        cost: by measure: ``limit``, ``expected``, ``derived``, ``genotype``, ``weight``; ``None`` without limits.
        scheduled: values of this epoch, of the options that change by epoch and are switched on.
        diagnosis: ``alpha_gradient``, the norm of the alphas' gradient by part of the loss at the first step;
            ``entropy`` of the operations as a share of the largest (1: undecided); ``changed_edges`` of the genotype
            since the epoch before.
        candidate: that this epoch trained, where the search trains candidates.
    """

    operations: Sequence[str]
    w: Figures
    alpha: Figures | None
    lr: Figures
    alphas: Mapping[str, Any]
    probabilities: Mapping[str, Sequence[Sequence[float]]]
    none_mass: Figures
    genotype: Genotype
    skips: Mapping[str, int]
    retrieval: Figures | None
    cost: Mapping[str, Mapping[str, Any]] | None = None
    scheduled: Figures = field(default_factory=dict, metadata={"optional": True})
    diagnosis: Mapping[str, Any] = field(default_factory=dict, metadata={"optional": True})
    candidate: CandidateRecord | None = field(default=None, metadata={"optional": True})

    @classmethod
    def from_dict(cls, record: Any) -> SearchRecord:
        """The inverse of :meth:`to_dict`; nothing in the line is trusted, and what is not of the schema is left out.

        Raises:
            ValueError: naming what is missing or wrong; so does :class:`~torchreid_autoreid.errors.UserError`, which
                is one, for a genotype.
            OverflowError: if a number is too large for a float.
        """
        last = _number(record, "epochs", 1, whole=True)
        _number(record, "epoch", 1, last, whole=True)
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
        _check_optional(record)
        if _get(record, "retrieval") is not None:
            for name in _RETRIEVAL:
                _number(record, f"retrieval.{name}", 0, _ONE)
            _number(record, "retrieval.num_valid_queries", 0, whole=True)
        genotype = Genotype.from_dict(_get(record, "genotype"))
        if num_edges(genotype.blocks) != len(record["probabilities"]["normal"]):
            raise ValueError(f"the genotype has {genotype.blocks} blocks, the probabilities have another number")
        known = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        alphas = known.get("alphas")
        known["alphas"] = alphas if isinstance(alphas, dict) else {}
        if record.get("candidate"):
            known["candidate"] = CandidateRecord.from_dict(record)
        return cls(**{**known, "genotype": genotype})

    def limits(self) -> dict[str, float]:
        """Measure -> limit of its cost."""
        return {measure: cost["limit"] for measure, cost in (self.cost or {}).items()}


def check_records(records: Any) -> None:
    """Raises a UserError for what are no records of a search, or none at all."""
    if not isinstance(records, list | tuple) or not all(isinstance(record, SearchRecord) for record in records):
        raise UserError(f"records must be a list of SearchRecord, not {short(records)}")
    if not records:
        raise UserError("there are no records; a search writes them after its first epoch")


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    return value.to_dict() if isinstance(value, Genotype | CandidateRecord) else value


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


def _check_optional(record: Any) -> None:
    if not isinstance(ended := record.get("ended", ""), str) or len(ended) > _MAX_REASON:
        raise ValueError(f"ended is {_short(ended)}, not a short text")
    for name in ("scheduled", "diagnosis"):
        if not isinstance(found := record.get(name, {}), dict):
            raise ValueError(f"{name} is {_short(found)}, not by name")
    for name in record.get("scheduled", {}):
        _checked(record["scheduled"][name], f"scheduled.{_short(name)}", 0, math.inf)
    if diagnosis := record.get("diagnosis"):
        gradients = _get(record, "diagnosis.alpha_gradient")
        if not isinstance(gradients, dict | None):
            raise ValueError(f"diagnosis.alpha_gradient is {_short(gradients)}, not by part of the loss")
        for name, norm in (gradients or {}).items():
            _checked(norm, f"diagnosis.alpha_gradient.{_short(name)}", 0, math.inf)
        for kind in KINDS:
            _number(record, f"diagnosis.entropy.{kind}", 0, _ONE)
        if diagnosis.get("changed_edges") is not None:
            _number(record, "diagnosis.changed_edges", 0, whole=True)


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
