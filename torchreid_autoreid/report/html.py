"""One self-contained HTML page that tells how a search went."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..errors import UserError
from ..genotype import Genotype, num_edges
from .plots import draw_alphas, draw_cell, draw_history

__all__ = ["read_history", "write_report"]

_MAX_HISTORY_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 1 << 20

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
figure { margin: 1rem 0; overflow-x: auto; } img { max-width: 100%; background: white; border-radius: 6px; }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; }
.figures div { background: var(--soft); border-radius: 8px; padding: .5rem 1rem; }
.figures b { display: block; font-size: 1.35rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
pre { background: var(--soft); padding: .75rem; border-radius: 6px; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; font-weight: 600; }
"""


def write_report(log_dir: str | Path, output: str | Path | None = None) -> Path:
    """Writes the report of a search from its log folder.

    Args:
        log_dir: the ``data.save_dir`` of a search: ``history.jsonl``, ``genotype.json`` and, if there, ``config.yaml``.
        output: the page; ``log_dir/report.html`` by default. Written in one step.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder holds no search, or a line of the history is not one.
    """
    folder = Path(log_dir)
    if not folder.is_dir():
        raise UserError(f"no log folder {folder}; give the data.save_dir of a search")
    records, torn = read_history(folder / "history.jsonl")
    genotype = Genotype.load(folder / "genotype.json")
    config = _read_text(folder / "config.yaml")
    page = "\n".join(_page(folder, records, torn, genotype, config))
    target = Path(output) if output else folder / "report.html"
    if not target.parent.is_dir():
        raise UserError(f"no folder {target.parent} to write the report into; make it first")
    _write(target, page)
    return target


def read_history(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The records of a history, and whether its last line was torn (a crash in mid-write).

    Raises:
        UserError: if the file is missing, empty, absurdly large, or a line is not a record of a search.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {path.name}, so it is no log folder of a search; give data.save_dir")
    if path.stat().st_size > _MAX_HISTORY_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, which is no history of a search")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) and records:
                return records, True
            raise UserError(f"line {number} of {path} is not JSON; restore the file or run the search again") from None
        if problem := _problem(record):
            raise UserError(f"line {number} of {path} is no record of a search ({problem}); restore the file")
        records.append(record)
    if not records:
        raise UserError(f"{path} is empty: no epoch has ended yet; wait for the first one")
    return records, False


def _problem(record: Any) -> str:
    """What keeps a value from being a record, or nothing."""
    if not isinstance(record, Mapping):
        return "not an object"
    try:
        operations = record["operations"]
        if not operations or not all(isinstance(name, str) for name in operations):
            return "no operations"
        for part in ("w", "alpha"):
            for name in ("loss", "loss_softmax", "loss_triplet", "top1", "top5", "top10"):
                if record[part] is not None or part == "w":
                    float(record[part][name])
        for kind in ("normal", "reduce"):
            rows = record["probabilities"][kind]
            if not rows or not any(num_edges(b) == len(rows) for b in range(1, len(rows) + 1)):
                return f"{kind} has no cell's number of edges"
            if any(len([float(value) for value in row]) != len(operations) for row in rows):
                return f"{kind} has rows of another length"
            float(record["none_mass"][kind]), int(record["skips"][kind])
        float(record["lr"]["w"]), float(record["lr"]["alpha"]), float(record["seconds"])
        int(record["epoch"]), int(record["epochs"])
        if record["retrieval"] is not None:
            for name in ("mAP", "rank1", "mINP"):
                float(record["retrieval"][name])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _page(
    folder: Path, records: Sequence[Mapping[str, Any]], torn: bool, genotype: Genotype, config: str
) -> Iterator[str]:
    first, last = records[0], records[-1]
    measured = [record["retrieval"] for record in records if record["retrieval"]]
    yield "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    yield f"<title>Search in {_text(folder.name)}</title><style>{_STYLE}</style>"
    yield f"<h1>Architecture search in {_text(folder.name)}</h1>"
    if last["epoch"] < last["epochs"]:
        yield f"<p>Stopped or still running: {_text(last['epoch'])} of {_text(last['epochs'])} epochs.</p>"
    if torn:
        yield "<p>The last line of the history is torn and was left out.</p>"
    yield "<div class=figures>"
    yield _figure_box("epochs", last["epoch"])
    yield _figure_box("time", _duration(sum(float(record["seconds"]) for record in records)))
    if measured:
        yield _figure_box("held-out mAP", f"{float(measured[-1]['mAP']):.1%}")
        yield _figure_box("held-out rank-1", f"{float(measured[-1]['rank1']):.1%}")
    part_aware = genotype.count("part_aware")
    yield _figure_box("part-aware edges", f"{sum(part_aware.values())} of {4 * genotype.blocks}")
    yield "</div>"
    yield "<h2>The cells found</h2>"
    for kind in ("normal", "reduce"):
        yield _image(draw_cell(genotype, kind), f"{kind} cell")
    yield "<p>Train it with</p>"
    found = shlex.quote(str(folder / "genotype.json"))
    command = f"python projects/autoreid/train.py --config-file configs/autoreid_train.yaml --genotype {found}"
    yield f"<pre>{_text(command)}</pre>"
    yield "<h2>The course of the search</h2>"
    yield _image(draw_history(records), "losses, accuracy, retrieval, rates and operations by epoch")
    yield from _table(records)
    yield "<h2>Probabilities of the operations</h2><p>Rows are edges, from input to block.</p>"
    for kind in ("normal", "reduce"):
        for when, record in (("first", first), ("last", last)) if len(records) > 1 else (("last", last),):
            title = f"{kind} cell, {when} epoch ({record['epoch']})"
            yield _image(draw_alphas(record["probabilities"][kind], record["operations"], title), title)
    content = _text(json.dumps(genotype.to_dict(), indent=1))
    yield f"<details><summary>genotype.json</summary><pre>{content}</pre></details>"
    if config:
        yield f"<details><summary>config.yaml</summary><pre>{_text(config)}</pre></details>"
    yield "</html>"


def _table(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    heads = ("epoch", "seconds", "loss w", "loss alpha", "top-1 w", "top-1 alpha", "mAP", "rank-1", "none", "skips")
    yield "<div class=scroll><table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for r in records:
        alpha, retrieval = r["alpha"] or {}, r["retrieval"] or {}
        cells = (
            str(int(r["epoch"])),
            f"{float(r['seconds']):.1f}",
            f"{float(r['w']['loss']):.3f}",
            f"{float(alpha['loss']):.3f}" if alpha else "–",
            f"{float(r['w']['top1']):.1%}",
            f"{float(alpha['top1']):.1%}" if alpha else "–",
            f"{float(retrieval['mAP']):.1%}" if retrieval else "–",
            f"{float(retrieval['rank1']):.1%}" if retrieval else "–",
            " / ".join(f"{float(r['none_mass'][kind]):.2f}" for kind in ("normal", "reduce")),
            " / ".join(str(int(r["skips"][kind])) for kind in ("normal", "reduce")),
        )
        yield "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _figure_box(name: str, value: object) -> str:
    return f"<div>{_text(name)}<b>{_text(value)}</b></div>"


def _image(figure: Figure, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<figure><img alt='{_text(text)}' src='data:image/png;base64,{data}'></figure>"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _read_text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _write(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
