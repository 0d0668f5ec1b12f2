"""The pages in a real browser: quiet, offline, by keyboard, on a narrow screen, without scripts, printed."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser

from torchreid_autoreid.commands.serve import Follower, make_server
from torchreid_autoreid.engine.run_folder import claim_run_folder
from torchreid_autoreid.evaluation import Embeddings, evaluate, roc
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.provenance import Start, note_start
from torchreid_autoreid.queries import Image, Queries, Query
from torchreid_autoreid.records import CandidateRecord
from torchreid_autoreid.report import write_report
from torchreid_autoreid.report.comparison import write_comparison
from torchreid_autoreid.report.costs import Costs, Network
from torchreid_autoreid.report.retrieval import FALSE_ACCEPTS, Evaluated, camera_table, write_retrieval

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")

AXE = os.environ.get("TORCHREID_AUTOREID_AXE", "")


@pytest.fixture(scope="module")
def browser():
    own = Browser()
    yield own
    own.close()


def write_log(folder, records, write_history):
    folder.mkdir()
    write_history(folder / "history.jsonl", records)
    Genotype.from_dict(records[-1]["genotype"]).save(folder / "genotype.json")
    return folder


@pytest.fixture(scope="module")
def search(tmp_path_factory, make_record, write_history):
    """The log of a search."""
    records = [make_record(epoch, 12) for epoch in range(1, 13)]
    folder = write_log(tmp_path_factory.mktemp("pages") / "search", records, write_history)
    answers = [(Image(pid, 1, f"{'long' * 30}/{pid}.jpg"), 0.1 * pid) for pid in range(10)]
    group = [Query(pid, Image(pid, 2, ""), 0.1 * pid, pid + 1, answers) for pid in range(4)]
    Queries(12, 0.5, 321, {"worst": group, "median": group, "best": group}).save(folder / "queries.json")
    note_start(folder, {"training images": "12"}, Start.now(1, "a device"))
    return folder, records


JPEG = b"\xff\xd8\xff\xd9"
#: an operation costs its number on an edge of its number
EDGES = [[100 * edge + operation for operation in range(7)] for edge in range(14)]
COSTS = Costs(
    "Counted.",
    (128, 64),
    [Network("the network found", 9_000_000, 80_000_000, own=True), Network("a known one", 2_000_000, 60_000_000)],
    {measure: {"normal": EDGES, "reduce": EDGES} for measure in ("params", "macs")},
)


@pytest.fixture(scope="module")
def pages(search, make_record, write_history):
    """A page of each kind."""
    folder, records = search
    place, presets = folder.parent, list(Genotype.presets().values())
    candidates = [
        record
        | {
            "candidate": CandidateRecord(
                number=n, rung=1, genotype=presets[n % 2], score=[0.3, 0.1, 0.2][n % 3]
            ).to_dict()
        }
        for n, record in enumerate(records, start=1)
    ]
    other = write_log(place / "candidates", candidates, write_history)
    rng = np.random.default_rng(0)
    query, gallery = (
        Embeddings(rng.normal(size=(n, 8)).astype(np.float32), rng.integers(0, 5, n), rng.integers(0, 3, n))
        for n in (30, 120)
    )
    evaluated = Evaluated(
        "set", "cosine", query, gallery, evaluate(query, gallery, topk=10), None,
        roc(query, gallery, FALSE_ACCEPTS), camera_table(query, gallery), [f"{'long' * 30}/{n}.jpg" for n in range(30)],
    )  # fmt: skip
    return {
        "search": write_report(folder, costs=COSTS, read_jpeg=lambda _: JPEG, pictures=2),
        "candidates": write_report(other),
        "comparison": write_comparison([folder, other], place / "comparison.html"),
        "retrieval": write_retrieval(evaluated, place / "retrieval.html"),
    }


KINDS = ("search", "candidates", "comparison", "retrieval")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_quiet_and_offline_and_fits_a_narrow_screen(browser, pages, kind):
    for width in (1400, 390):
        browser.open(pages[kind], width)
        assert browser.said() == []
        assert browser.requests() == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("kind", KINDS)
def test_a_screen_reader_is_told_headings_captions_and_pictures(browser, pages, kind):
    browser.open(pages[kind])
    roles = browser.roles()
    names = {role: [name for own, name in roles if own == role] for role in ("heading", "image", "table", "button")}
    assert sum(role == "main" for role, _ in roles) == 1
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))  # none is skipped
    sections, linked = browser.evaluate(
        "[[...document.querySelectorAll('h2')].map((h) => [h.textContent, `#${h.id}`]),"
        " [...document.querySelectorAll('nav a')].map((a) => [a.textContent, a.hash])]"
    )
    assert sections == linked
    assert len({place for _, place in linked}) == len(linked) > 3
    assert len(names["image"]) > 1
    assert len(names["table"]) > 1
    for role, found in names.items():
        assert all(found), role  # each has a name


# WCAG 2.1, section 1.4.3
WEAK = """((canvas) => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const curve = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => rgb.slice(0, 3).reduce((sum, v, i) => sum + curve(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (under, [r, g, b, a = 1]) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const behind = (element) => {
    const layers = [];
    for (let own = element; own; own = own.parentElement) layers.push(parts(getComputedStyle(own).backgroundColor));
    return layers.reverse().reduce(over, canvas);
  };
  const ratio = (element) => {
    const [a, b] = [parts(getComputedStyle(element).color), behind(element)].map(light).sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const words = [...document.querySelectorAll("main *:not(svg *)")]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return [words.length, words.filter((e) => ratio(e) < 4.5).map((e) => e.outerHTML.slice(0, 80))];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_words_stand_out_from_what_is_behind_them(browser, pages, kind, scheme):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        browser.open(pages[kind])
        count, weak = browser.evaluate(f"{WEAK}({[18] * 3 if scheme == 'dark' else [255] * 3})")
    finally:
        browser.call("Emulation.setEmulatedMedia", features=[])
    assert count > 50
    assert weak == []


@pytest.mark.skipif(not AXE, reason="TORCHREID_AUTOREID_AXE names no axe.min.js (npm pack axe-core)")
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing(browser, pages, kind, width):
    browser.open(pages[kind], width)
    browser.evaluate(Path(AXE).read_text(encoding="utf-8") + "; 0")
    found = browser.call(
        "Runtime.evaluate",
        expression="axe.run().then((r) => r.violations.map((v) => [v.impact, v.id, v.nodes[0].html.slice(0, 90)]))",
        awaitPromise=True,
        returnByValue=True,
    )
    assert found["result"]["value"] == []


SHOWN = """[...document.querySelectorAll("section [data-steps]")].filter((e) => e.checkVisibility())
    .map((e) => [e.dataset.steps.split(" ").map(Number), e.querySelector("[role=img]")?.ariaLabel ?? e.ariaLabel])"""


def test_the_slider_by_keyboard_changes_cells_and_rows(browser, pages, search):
    browser.open(pages["search"])
    _, records = search

    def check(step):
        said = browser.evaluate("document.querySelector('section output').textContent")
        assert said.split(",")[0] == f"epoch {step + 1}"
        shown = browser.evaluate(SHOWN)
        assert len(shown) == 5  # two cells, two bodies of probabilities, the kept edges
        assert all(step in steps for steps, _ in shown)
        genotype = Genotype.from_dict(records[step]["genotype"])
        (first, source), _ = genotype.normal[0]
        assert shown[0][1].startswith(f"Normal cell: block 2 adds {first} of {source} ")
        values = browser.evaluate(
            "[...document.querySelectorAll('.heat')].map((t) => [...t.tBodies].find((b) => b.checkVisibility()).rows[0]"
            ".innerText.trim().split(/\\s+/).slice(3).map(Number))"
        )
        expected = [records[step]["probabilities"][kind][0] for kind in ("normal", "reduce")]
        np.testing.assert_allclose(values, expected, atol=0.0051)

    check(11)
    browser.evaluate("document.querySelector('section input').focus()")
    browser.press("ArrowLeft")
    check(10)
    browser.press("Home")
    check(0)
    browser.press("ArrowRight")
    check(1)
    browser.press("End")
    check(11)
    spoken = browser.evaluate("document.querySelector('section input').getAttribute('aria-valuetext')")
    assert spoken == browser.evaluate("document.querySelector('section output').textContent")


CURVES = """[...document.querySelectorAll(".curve")].map((c) => [c.querySelector(".mark").x1.baseVal.value,
    c.ariaValueText, c.parentElement.querySelector("figcaption b").textContent])"""


def test_an_epoch_on_a_curve_is_marked_on_all_and_moves_the_slider(browser, pages, search):
    browser.open(pages["search"])
    _, records = search

    def check(step):
        assert browser.evaluate("document.querySelector('section input').value") == str(step)
        found = browser.evaluate(CURVES)
        assert len(found) == 4
        # The plot is from 64 to 408; the twelve epochs are spread evenly over it.
        assert [place for place, _, _ in found] == pytest.approx([64 + 344 * step / 11] * 4, abs=0.1)
        record = records[step]
        alpha = f"{record['alpha']['loss']:.3g}" if record["alpha"] else "–"
        losses = f"w {record['w']['loss']:.3g}, α {alpha}"
        assert found[0][1:] == [f"epoch {step + 1}: {losses}", losses]
        none = record["none_mass"]
        assert found[3][2] == f"normal cell {none['normal']:.3g}, reduction cell {none['reduce']:.3g}"

    check(11)
    browser.evaluate("document.querySelectorAll('.curve')[2].scrollIntoView({block: 'center'})")
    left, top, width = browser.evaluate(
        "(({left, top, width}) => [left, top, width])"
        "(document.querySelectorAll('.curve')[2].querySelector('svg').getBoundingClientRect())"
    )
    for step in (4, 0, 7):
        browser.point(left + width * (64 + 344 * step / 11 + 5) / 420, top + 60)
        check(step)
    browser.evaluate("document.querySelectorAll('.curve')[1].focus()")
    browser.press("ArrowRight")
    check(8)
    browser.press("End")
    check(11)
    browser.press("ArrowRight")
    check(11)
    browser.press("Home")
    check(0)
    browser.open(pages["candidates"])  # without alphas: the curves are linked to each other
    browser.evaluate("document.querySelectorAll('.curve')[0].focus()")
    browser.press("ArrowLeft")
    assert all(said.startswith("epoch 11: ") for _, said, _ in browser.evaluate(CURVES))


def test_a_row_of_probabilities_tells_what_its_edge_keeps_against_what_and_at_what_cost(browser, pages, search):
    browser.open(pages["search"])
    record = search[1][-1]
    operations, rows = record["operations"], record["probabilities"]["normal"]
    said = "document.querySelectorAll('.readout')[0].textContent"
    browser.evaluate("document.querySelector('.heat tbody:not([hidden]) tr').focus()")
    kept = {
        (source, block + 2): name for block, pair in enumerate(record["genotype"]["normal"]) for name, source in pair
    }
    edges = [(source, block) for block in range(2, 6) for source in range(block)]
    for number, (row, edge) in enumerate(zip(rows, edges, strict=True)):
        name = kept.get(edge)
        others = {o: p for o, p in zip(operations, row, strict=True) if o not in ("none", name)}
        best = max(others, key=others.get)
        told = browser.evaluate(said)
        if name:
            own = operations.index(name)
            assert told.startswith(f"{edge[0]} → {edge[1]} keeps {name} ({row[own]:.3f}): runner-up {best}, margin ")
            cost = f"{100 * number + own}" if 100 * number + own < 1000 else f"{(100 * number + own) / 1000:.2f} k"
            assert f"margin {row[own] - others[best]:+.3f}, " in told
            assert told.endswith(f"parameters {cost}, multiply–adds {cost}.")
        else:
            assert told.startswith(f"{edge[0]} → {edge[1]} is not kept: ")
        browser.press("ArrowDown")
    assert browser.evaluate("document.querySelectorAll('.heat tr[tabindex=\"0\"]').length") == 2  # a stop a table


def test_a_served_page_follows_a_search_as_its_history_grows(browser, tmp_path, make_record, write_history):
    folder = tmp_path / "search"
    folder.mkdir()
    (folder / "config.yaml").write_text("data: {sources: [folder]}")
    claim_run_folder(folder)
    hurried = "(({setTimeout: later}) => { window.setTimeout = (run, wait) => later(run, wait / 20); })(window)"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=hurried)  # the page asks every two seconds
    with make_server(Follower(folder, dict)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            browser.open(f"http://127.0.0.1:{server.server_port}/", 390)
            said = "document.querySelector('[data-follow]').textContent"
            assert browser.evaluate(said).startswith("The first epoch is running; ")
            assert browser.evaluate("document.querySelector('h2')") is None
            records = [make_record(epoch, 9) for epoch in range(1, 5)]
            Genotype.from_dict(records[-1]["genotype"]).save(folder / "genotype.json")
            write_history(folder / "history.jsonl", records[:3])
            browser.wait("document.querySelector('section input')?.max === '2'")
            browser.wait(f"{said}.startsWith('Epoch 4 of 9 is running; about ')")
            # Who looks at an epoch goes on looking at it, and keeps the focus.
            browser.evaluate("document.querySelectorAll('.curve')[1].focus()")
            browser.press("Home")
            with open(folder / "history.jsonl", "a") as file:
                file.write(json.dumps(records[3]) + "\n" + json.dumps(records[3])[:99])
            browser.wait("document.querySelector('section input').max === '3'")
            assert browser.evaluate("document.querySelector('section output').textContent").startswith("epoch 1")
            assert browser.evaluate("document.activeElement === document.querySelectorAll('.curve')[1]")
            browser.press("End")
            assert browser.evaluate("document.querySelector('section output').textContent").startswith("epoch 4")
            assert "history.jsonl is torn" in browser.evaluate("document.querySelector('main').textContent")
            assert browser.said() == []
        finally:
            server.shutdown()
            thread.join()
    browser.wait(f"{said}.startsWith('The server of this page does not answer')")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **added)
    browser.open("about:blank")  # it would go on asking


def test_the_genotype_on_the_page_is_the_one_in_the_file(browser, pages, search):
    browser.open(pages["search"])
    genotype = Genotype.load(search[0] / "genotype.json")
    drawn = browser.evaluate(
        "[...document.querySelectorAll('figure')].slice(0, 2).map((f) => [...f.querySelectorAll('text')]"
        ".map((t) => t.textContent).filter((t) => t.includes('_') || t === 'none'))"
    )
    kept = [[operation for block in cell for operation, _ in block] for cell in (genotype.normal, genotype.reduce)]
    assert drawn == kept


def test_the_slider_of_rates_moves_the_threshold(browser, pages):
    browser.open(pages["retrieval"])
    lines = "[...document.querySelectorAll('line[data-steps]')]"
    place = f"{lines}.filter((l) => l.checkVisibility()).map((l) => l.x1.baseVal.value)"
    said = "document.querySelector('[data-slider] output').textContent"
    browser.evaluate("document.querySelector('[data-slider] input').focus()")
    browser.press("Home")
    low, first = browser.evaluate(place), browser.evaluate(said)
    browser.press("End")
    high, last = browser.evaluate(place), browser.evaluate(said)
    assert len(low) == len(high) == 1
    assert low[0] < high[0]
    assert first != last
    assert last.startswith("0.3 false accepts: ")


def test_a_table_is_sorted_by_the_head_that_is_pressed(browser, pages):
    browser.open(pages["candidates"])
    column = "[...document.querySelector('table[data-sortable]').tBodies[0].rows].map((r) => r.cells[{}].textContent)"
    best_first = browser.evaluate(column.format(2))
    assert best_first == ["30.00%"] * 4 + ["20.00%"] * 4 + ["10.00%"] * 4
    head = "document.querySelectorAll('table[data-sortable] th[scope=col]')[{}]"
    browser.evaluate(head.format(0) + ".querySelector('button').focus()")
    browser.press("Enter")
    assert browser.evaluate(column.format(0)) == [str(number) for number in range(12, 0, -1)]
    assert browser.evaluate(head.format(0) + ".ariaSort") == "descending"
    browser.press("Enter")
    assert browser.evaluate(column.format(0)) == [str(number) for number in range(1, 13)]
    browser.evaluate(head.format(2) + ".querySelector('button').click()")
    assert browser.evaluate(column.format(2)) == best_first
    assert browser.evaluate(head.format(0) + ".ariaSort") is None


def test_a_page_is_read_without_scripts(browser, pages):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["search"])
        shown = [name for role, name in browser.roles() if role == "slider"]
        assert shown == []  # it would do nothing
        names = [name for role, name in browser.roles() if role == "rowgroup"]
        assert [name for name in names if "Probabilities" in name] == [
            f"Probabilities, {kind} cell, epoch 12" for kind in ("normal", "reduction")
        ]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_nothing_that_a_log_names_can_run(browser, search, write_history):
    folder, records = search
    nasty = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    named = [record | {"genotype": record["genotype"] | {"name": nasty}} for record in records]
    other = write_log(folder.parent / "nasty", named, write_history)
    (other / "config.yaml").write_text(f"data: {{sources: [{nasty!r}]}}\n# {nasty}\n")
    browser.open(write_report(other))
    assert browser.evaluate("document.title") == "Architecture search: nasty"
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.said() == []


def test_every_row_is_printed(browser, pages):
    """On paper nothing is cut off: a region that scrolls on the screen is as high as what it holds."""
    browser.open(pages["search"])
    assert browser.pdf().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        regions = browser.evaluate(
            "[...document.querySelectorAll('.scroll, pre')].map((e) => [e.clientHeight, e.scrollHeight])"
        )
        assert len(regions) > 2
        assert all(shown >= whole for shown, whole in regions)
        assert browser.evaluate("document.querySelector('[data-slider]').checkVisibility()") is False
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
