"""One self-contained HTML page that tells how a search went."""

from __future__ import annotations

import base64
import html
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from matplotlib.figure import Figure

from ..config.read import plain_yaml
from ..errors import UserError
from ..files import check_output, write_output
from ..genotype import Genotype
from .history import read_history
from .plots import COST_LABELS, MEASURE_NAMES, draw_alphas, draw_cell, draw_costs, draw_history

__all__ = ["amount", "write_report"]

_MAX_CONFIG_BYTES = 1 << 20
_CELLS = {"normal": "Normal cell", "reduce": "Reduction cell"}

# Pictures are drawn dark on white; where the reader prefers dark pages they are inverted, and keep their hues.
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --faint: #6b7280; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
.faint { color: var(--faint); margin: .25rem 0; overflow-wrap: anywhere; }
.note { border-left: 4px solid #e08a1e; padding: .4rem .8rem; background: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tiles div { background: var(--soft); border-radius: 8px; padding: .6rem .9rem; font-size: .85rem; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.3; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: .75rem 0; overflow-x: auto; background: #fff; border-radius: 8px; padding: .5rem; }
img { display: block; margin: 0 auto; max-width: 100%; height: auto; }
.wide img { max-width: none; }
.scroll { overflow: auto; max-height: 32rem; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: Canvas; }
pre { background: var(--soft); padding: .75rem; border-radius: 8px; overflow-x: auto; font-size: .85rem; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  :root { --faint: #9ca3af; }
  figure { filter: invert(.92) hue-rotate(180deg); }
}
"""
# Nothing is fetched and nothing runs, whatever the files of the log hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    log_dir: str | Path,
    output: str | Path | None = None,
    *,
    parameters: int | None = None,
    macs: int | None = None,
) -> Path:
    """Writes the report of a search, finished or not, from its log folder.

    Args:
        log_dir: the ``data.save_dir`` of a search: ``history.jsonl``, ``genotype.json`` and, if there, ``config.yaml``.
        output: the page, ``*.html``; ``log_dir/report.html`` by default. It is replaced in one step.
        parameters, macs: of the network found, shown if given (numbers, not millions).

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder is no log of a search, one of its files is damaged, or the page cannot be written.
    """
    folder = Path(log_dir)
    if not folder.is_dir():
        raise UserError(f"no log folder {folder}; give the data.save_dir of a search")
    target = Path(output) if output is not None else folder / "report.html"
    if target.suffix.lower() not in {".html", ".htm"}:
        raise UserError(f"the report is a web page; give it a name that ends in .html, not {str(target)!r}")
    check_output("the report", target)
    records, torn = read_history(folder / "history.jsonl")
    if not (folder / "genotype.json").is_file():
        raise UserError(f"{folder} holds no genotype.json, so it is no log of a search; give its data.save_dir")
    genotype = Genotype.load(folder / "genotype.json")
    config = _read_config(folder / "config.yaml")
    notes = list(_notes(records, torn, genotype, config))
    page = "\n".join(
        [
            *_head(folder, config, notes),
            *_tiles(records, genotype, parameters, macs),
            *_cells(folder, genotype),
            *_course(records),
            *_costs(records),
            *_alphas(records),
            *_table(records),
            *_files(genotype, config),
        ]
    )
    write_output("the report", target, lambda name: Path(name).write_text(page, encoding="utf-8", errors="replace"))
    return target


def _read_config(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        if (size := path.stat().st_size) > _MAX_CONFIG_BYTES:
            raise UserError(f"{path} has {size} bytes, which is no configuration (at most {_MAX_CONFIG_BYTES})")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _notes(records: Sequence[Mapping[str, Any]], torn: bool, genotype: Genotype, config: str | None) -> Iterator[str]:
    """What a reader has to know before the figures."""
    last = records[-1]
    if ended := last.get("ended"):
        yield f"The search ended after {last['epoch']} of {last['epochs']} epochs: {ended}."
    elif last["epoch"] < last["epochs"]:
        yield f"The search is still running, or was stopped: {last['epoch']} of {last['epochs']} epochs are done."
    if records[0]["epoch"] > 1:
        yield f"The history begins with epoch {records[0]['epoch']}; the time is that of the epochs in it."
    if torn:
        yield "The last line of history.jsonl is torn (a crash, or an epoch being written) and was left out."
    found = Genotype.from_dict(last["genotype"])
    if (found.normal, found.reduce) != (genotype.normal, genotype.reduce):
        yield "genotype.json is not the genotype of the last epoch in history.jsonl; its cells are the ones drawn."
    if config is None:
        yield "The folder holds no config.yaml, so the settings of the search are not shown."


def _head(folder: Path, config: str | None, notes: Sequence[str]) -> Iterator[str]:
    name = folder.resolve().name or str(folder)
    yield "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>"
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield "<meta name=viewport content='width=device-width, initial-scale=1'>"
    yield f"<title>Architecture search: {_text(name)}</title>\n<style>{_STYLE}</style>"
    yield f"<h1>Architecture search: {_text(name)}</h1>"
    if config is not None and (settings := _settings(config)):
        yield f"<p class=faint>{_text(settings)}</p>"
    yield from (f"<p class=note>{_text(note)}</p>" for note in notes)


def _settings(config: str) -> str:
    """The settings that tell one search from another, in a line; what is not there is left out."""
    try:
        tree = plain_yaml(config)
    except yaml.YAMLError:
        return ""  # the file itself is shown below as it is

    def value(section: str, key: str) -> str:
        branch = tree.get(section) if isinstance(tree, dict) else None
        leaf = branch.get(key) if isinstance(branch, dict) else None
        leaves = leaf if isinstance(leaf, list) else [leaf]
        return ", ".join(str(leaf)[:60] for leaf in leaves[:8] if isinstance(leaf, str | int | float))

    height, width = value("data", "height"), value("data", "width")
    parts = [
        (value("data", "sources"), "{}"),
        (height and width and f"{height}×{width}", "{} pixels"),
        (value("autoreid", "channels"), "C = {}"),
        (value("autoreid", "layers"), "L = ({})"),
        (value("search", "strategy"), "{}"),
        (value("search", "order"), "order {}"),
        (value("search", "split"), "split by {}"),
        (value("train", "seed"), "seed {}"),
    ]
    return " · ".join(form.format(text) for text, form in parts if text)


def _tiles(
    records: Sequence[Mapping[str, Any]], genotype: Genotype, parameters: int | None, macs: int | None
) -> Iterator[str]:
    tiles = []
    measured = [record for record in records if record["retrieval"]]
    if measured:
        last, best = measured[-1], max(measured, key=lambda record: record["retrieval"]["mAP"])
        note = f"best {best['retrieval']['mAP']:.1%}, epoch {best['epoch']}"
        tiles.append(("held-out mAP", f"{last['retrieval']['mAP']:.1%}", note))
        queries = f"{last['retrieval']['num_valid_queries']} queries, epoch {last['epoch']}"
        tiles.append(("held-out rank-1", f"{last['retrieval']['rank1']:.1%}", queries))
    seconds = sum(record["seconds"] for record in records)
    tiles.append(("time", _duration(seconds), f"{_duration(seconds / len(records))} an epoch"))
    tiles.append(("epochs", str(records[-1]["epoch"]), f"of {records[-1]['epochs']}"))
    for name, operation in (("part-aware edges", "part_aware"), ("skip connections", "skip_connect")):
        count = genotype.count(operation)
        note = f"{count['normal']} normal, {count['reduce']} reduction"
        tiles.append((name, f"{sum(count.values())} of {4 * genotype.blocks}", note))
    for measure, cost in (records[-1].get("cost") or {}).items():
        tiles.append((MEASURE_NAMES[measure], amount(cost["genotype"]), f"at most {amount(cost['limit'])}"))
    if parameters is not None:
        tiles.append(("parameters", amount(parameters), "of the network found"))
    if macs is not None:
        tiles.append(("multiply–adds", amount(macs), "an image"))
    yield "<div class=tiles>"
    yield from (f"<div>{_text(name)}<b>{_text(value)}</b>{_text(note)}</div>" for name, value, note in tiles)
    yield "</div>"


def _cells(folder: Path, genotype: Genotype) -> Iterator[str]:
    yield f"<h2>The cells found: {_text(genotype.name)}</h2>"
    for kind, name in _CELLS.items():
        yield _picture(name, draw_cell(genotype, kind), style="wide")
    command = (
        f"autoreid train --config-file autoreid_train.yaml --genotype {shlex.quote(str(folder / 'genotype.json'))}"
    )
    yield "<p>To train the network made of them (with the recipe of your dataset):</p>"
    yield f"<pre>{_text(command)}</pre>"
    code = (
        "import torchreid, torchreid_autoreid",
        f"torchreid_autoreid.register_model('searched', genotype={str(folder / 'genotype.json')!r})",
        "model = torchreid.models.build_model('searched', num_classes=751, loss='triplet', pretrained=False)",
    )
    yield "<p>As a model of torchreid:</p>"
    yield f"<pre>{_text(chr(10).join(code))}</pre>"


def _course(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "<h2>The course of the search</h2>"
    yield _picture("Curves by epoch", draw_history(records), narrow=draw_history(records, columns=1))


def _costs(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not records[-1].get("cost"):
        return
    yield "<h2>Cost and budget</h2>"
    yield (
        "<p class=faint>Of the network to be trained, without its classifier. Expected: what the loss of the α sees. "
        "Derived: of the genotype that the α stand for. Kept: of the genotype that keeps the budget.</p>"
    )
    yield _picture("Cost by epoch", draw_costs(records))


def _alphas(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "<h2>Probabilities of the operations</h2>"
    yield "<p class=faint>A row is an edge, from an input to a block. Framed: what the genotype of the epoch keeps.</p>"
    shown = [records[0], records[-1]] if len(records) > 1 else [records[-1]]
    for kind, name in _CELLS.items():
        top = max(value for record in shown for row in record["probabilities"][kind] for value in row)
        yield "<div class=pair>"
        for record in shown:
            title = f"{name}, epoch {record['epoch']}"
            cell = getattr(Genotype.from_dict(record["genotype"]), kind)
            rows = record["probabilities"][kind]
            yield _picture(title, draw_alphas(rows, record["operations"], title, cell=cell, top=top))
        yield "</div>"


def _table(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    halves = [f"{name} ({half})" for name in ("loss", "top-1") for half in ("w", "α")]
    heads = ["epoch", "seconds", *halves, "mAP", "rank-1", "mINP", "rate (w)", "rate (α)", "none", "skips"]
    costs = [(measure, name) for measure in records[0].get("cost") or () for name in COST_LABELS]
    heads += [f"{MEASURE_NAMES[measure]}, {COST_LABELS[name]}" for measure, name in costs]
    yield "<h2>Epochs</h2>"
    yield "<p class=faint>w and α: the half that trains each. none and skips: normal cell / reduction cell.</p>"
    yield "<div class=scroll><table>"
    yield "<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for record in records:
        alpha, retrieval = record["alpha"] or {}, record["retrieval"] or {}
        row = [
            str(record["epoch"]),
            f"{record['seconds']:.1f}",
            *(f"{half['loss']:.3f}" if half else "–" for half in (record["w"], alpha)),
            *(f"{half['top1']:.1%}" if half else "–" for half in (record["w"], alpha)),
            *(f"{retrieval[name]:.1%}" if retrieval else "–" for name in ("mAP", "rank1", "mINP")),
            *(f"{record['lr'][name]:.3g}" for name in ("w", "alpha")),
            " / ".join(f"{record['none_mass'][kind]:.2f}" for kind in _CELLS),
            " / ".join(str(record["skips"][kind]) for kind in _CELLS),
            *("–" if (value := record["cost"][m][name]) is None else amount(value) for m, name in costs),
        ]
        yield "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
    yield "</table></div>"


def _files(genotype: Genotype, config: str | None) -> Iterator[str]:
    yield "<h2>Files</h2>"
    contents = {"genotype.json": json.dumps(genotype.to_dict(), indent=1), "config.yaml": config}
    for name, content in contents.items():
        if content is not None:
            yield f"<details><summary>{name}</summary><pre>{_text(content)}</pre></details>"
    yield "</html>\n"


def _picture(text: str, figure: Figure, *, narrow: Figure | None = None, style: str = "") -> str:
    """A figure, and another one for narrow screens."""
    source = f'<source media="(max-width: 46rem)" srcset="{_svg(narrow)}">' if narrow else ""
    image = f'<picture>{source}<img alt="{_text(text)}" src="{_svg(figure)}"></picture>'
    return f'<figure class="{style}">{image}</figure>'


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    # The same log gives the same page: no date, and names inside the drawing that are not random.
    with matplotlib.rc_context({"svg.hashsalt": "autoreid", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _duration(seconds: float) -> str:
    """
    >>> _duration(59), _duration(600), _duration(9000)
    ('59 s', '10 min', '2.5 h')
    """
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def amount(number: float) -> str:
    """A number of parameters, multiply-adds or milliseconds for people.

    >>> amount(9_874_321), amount(1_940_000_000), amount(12.3456), amount(12)
    ('9.87 M', '1.94 G', '12.35', '12')
    """
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number) if isinstance(number, int) else f"{number:.2f}"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
