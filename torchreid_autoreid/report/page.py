"""What the pages have in common: templates, pictures, and how a page reaches its file."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from ..errors import UserError
from ..files import check_output, write_output
from ..genotype import Genotype
from .cells import CELLS, cell_in_words, cell_svg

__all__ = ["Picture", "Table", "cell_picture", "check_page", "picture", "render_page", "write_page"]

_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # what files and folders are called is text, and never markup
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters["breakable"] = lambda name: Markup("_<wbr>").join(name.split("_"))

_SCRIPT, _FOLLOW = ((Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("page.js", "follow.js"))


def check_page(path: str | Path, what: str = "the report") -> Path:
    """Refuses what can be no page, before any work.

    Raises:
        UserError: if the name does not end in ``.html``, or the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in {".html", ".htm"}:
        raise UserError(f"{what} is a web page; give it a name that ends in .html, not {str(target)!r}")
    check_output(what, target)
    return target


def render_page(template: str, follow: str = "", version: str = "", **values: Any) -> str:
    """Fills a template of this folder.

    Args:
        template: its name.
        follow: what a page says of a run that it follows, asking the server that it comes from; empty for a file.
        version: of the files that such a page is made from.
        values: what the template needs.
    """
    script = _SCRIPT + _FOLLOW if follow else _SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = _PAGES.get_template(template).render(
        script=Markup(script), script_hash=f"sha256-{digest}", follow=follow, version=version, **values
    )
    return _with_contents(text)


def _with_contents(text: str) -> str:
    """Names the sections of a page, and lists them with links before the first one."""
    titles: list[str] = []

    def named(found: re.Match[str]) -> str:
        titles.append(found[1])
        return f"<h2 id=part{len(titles)}>{found[1]}</h2>"

    text = re.sub(r"<h2>(.*?)</h2>", named, text)
    links = "".join(f'<li><a href="#part{number}">{title}</a></li>' for number, title in enumerate(titles, start=1))
    return text.replace("<h2 ", f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<h2 ', 1)


def write_page(template: str, target: str | Path, what: str = "the report", **values: Any) -> None:
    """Fills a template of this folder, and replaces the page in one step."""
    text = render_page(template, **values)
    write_output(what, target, lambda file: Path(file).write_text(text, encoding="utf-8", errors="replace"))


@dataclass(frozen=True)
class Picture:
    """A drawing as an element of the page.

    Attributes:
        caption: shown below it.
        text: what it shows, for those who cannot see it.
        svg: with letters that can be read and found.
        narrow: another form of it for narrow screens, if any.
    """

    caption: str
    text: str
    svg: Markup
    narrow: Markup | None = None


@dataclass(frozen=True)
class Table:
    """A table of the page; the first cell of a row is its head.

    Attributes:
        caption: what a reader has to know of it.
        heads: of the columns.
        rows: of cells, each a text.
        of_text: whether its cells are words rather than numbers.
        sortable: whether a reader may sort it by a column.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    of_text: bool = False
    sortable: bool = False


def picture(caption: str, figure: Figure, narrow: Figure | None = None, text: str = "") -> Picture:
    """A figure for a page; the same figure gives the same bytes."""
    return Picture(caption, text or caption, _svg(figure), _svg(narrow) if narrow else None)


def cell_picture(genotype: Genotype, kind: str, of: str = "") -> Picture:
    """A cell of a genotype, told in words too."""
    name = f"{CELLS[kind]}{of}"
    return Picture(name, f"{name}: {cell_in_words(genotype, kind)}.", cell_svg(genotype, kind))


def _svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    # No date, and names inside the drawing that are not random.
    with matplotlib.rc_context({"svg.hashsalt": "autoreid", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'<g id="\w+_\d+"(/?)>', r"<g\1>", drawing)  # a page has many figures, and an id once
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    # Another font where there is no DejaVu: the letters keep their size and their middle.
    return Markup(drawing.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif"))
