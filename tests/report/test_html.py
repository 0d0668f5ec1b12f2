"""The page is read as a browser reads it: one file, nothing fetched, one script of its own, every picture whole."""

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from forks import completed

from torchreid_autoreid import files
from torchreid_autoreid.commands.serve import Follower, status
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.provenance import FILE, Start, note_start
from torchreid_autoreid.queries import Image, Queries, Query
from torchreid_autoreid.records import CandidateRecord
from torchreid_autoreid.report import log, verdict, write_report
from torchreid_autoreid.report.costs import Costs, Network
from torchreid_autoreid.report.log import read_log

NASTY = "<script>alert(1)</script>'\"&<img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Elements with their attributes, the text, and the addresses that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def pictures(self):
        """What is said of each."""
        return [attributes["aria-label"] for _, attributes in self.elements if attributes.get("role") == "img"]

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def linked(self):
        return [attributes for _, attributes in self.elements if "xlink:href" in attributes]

    @property
    def addresses(self):
        names = ("src", "srcset", "href", "data", "action", "poster", "background")
        return [attributes[name] for _, attributes in self.elements for name in names if name in attributes]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


OWN = Network("the network found", 9_874_321, 1_940_000_000, own=True)
COSTS = Costs("Counted.", (256, 128), [OWN, Network("another", 1, 2)])


@pytest.fixture(scope="module")
def whole_page(kept_log_dir):
    """With all its drawings, which take their time."""
    path = write_report(kept_log_dir, costs=COSTS)
    assert path == kept_log_dir / "report.html"
    return path


def test_the_page_says_what_the_log_says(whole_page):
    page, log_dir = read(whole_page), whole_page.parent
    for words in (
        "Architecture search: search",
        "market1501 · 128×64 pixels · C = 16 · L = (2, 2, 2, 2) · order 2 · split by image · seed 1",
        "held-out mAP50.0%best 50.0%, epoch 4",
        "held-out rank-160.0%321 queries, epoch 4",
        "time50 s12 s an epoch",
        "epochs4of 4",
        "parameters9.87 M",
        "multiply–adds1.94 G",
    ):
        assert words in page.text
    genotype = Genotype.load(log_dir / "genotype.json")
    count = genotype.count("part_aware")
    words = f"part-aware edges{sum(count.values())} of 16{count['normal']} normal, {count['reduce']} reduction"
    assert words in page.text
    assert f"genotype={str(log_dir / 'genotype.json')!r}" in page.text
    assert json.dumps(genotype.to_dict(), indent=1) in page.text
    assert (log_dir / "config.yaml").read_text() in page.text
    assert not [element for element in page.all("p") if element.get("class") == "note"]
    (normal, reduction, costs), (curves, narrow_curves) = page.pictures()[:3], page.pictures()[-2:]
    assert costs == "Parameters and multiply–adds: another 1 and 2; the network found 9.87 M and 1.94 G."
    assert curves == narrow_curves == "Curves by epoch"
    for name, cell, told in (("Normal", genotype.normal, normal), ("Reduction", genotype.reduce, reduction)):
        (one, source), (other, second) = cell[1]
        assert told.startswith(f"{name} cell: block 2 adds ")
        assert f"; block 3 adds {one} of {source} and {other} of {second}; " in told


@pytest.mark.usefixtures("no_drawing")
def test_the_table_holds_every_epoch(log_dir, records):
    text = write_report(log_dir).read_text(encoding="utf-8")
    (table,) = [found for found in re.findall(r"<table.*?</table>", text, flags=re.DOTALL) if "w and α" in found]
    rows = [re.findall(r"<t[dh](?: scope=row)?>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    first, second = rows[0], rows[1]
    assert first[3] == first[5] == first[6] == "–"  # alpha warmed up, retrieval was not measured
    alpha = records[1]["alpha"]
    assert second[1:9] == [
        "12.5",
        f"{records[1]['w']['loss']:.3f}",
        f"{alpha['loss']:.3f}",
        "35.0%",
        "31.5%",
        "25.0%",
        "30.0%",
        "15.0%",
    ]
    assert second[-1] == f"{records[1]['skips']['normal']} / {records[1]['skips']['reduce']}"


def test_costs_are_shown_against_the_budget(log_dir, limited_records, write_history):
    write_history(log_dir / "history.jsonl", limited_records)
    page = write_report(log_dir).read_text()
    assert ">Cost and budget</h2>" in page
    assert 'aria-label="Cost by epoch"' in page
    assert "<div>multiply–adds<b>900.00 M</b>at most 1.00 G</div>" in page
    assert "<div>latency in ms<b>18.25</b>at most 20.00</div>" in page
    assert "<th scope=col>latency in ms, kept</th>" in page
    assert "<td>1.75 G</td><td>1.20 G</td><td>900.00 M</td><td>–</td><td>19.50</td><td>18.25</td>" in page


def test_the_page_is_whole_in_itself(whole_page):
    page, text = read(whole_page), whole_page.read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    # Cells found, costs for a wide and a narrow screen, linked curves, cells of each epoch, ribbon, curves.
    assert len(drawings) == len(page.pictures()) == 2 + 2 + 4 + 2 * 4 + 1 + 2
    assert ET.fromstring(drawings[-1]).tag == "{http://www.w3.org/2000/svg}svg"
    for address in [*page.addresses, *(attributes["xlink:href"] for attributes in page.linked)]:
        assert re.match(r"#\w+$|data:image/png;base64,", address)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {name[0] for name in ids} <= {"m", "p", "i"}  # marks, clips and pictures, named by what they are
    assert re.search(r"<text[^>]*>\s*part_aware\s*</text>", text)  # letters, which can be found and read aloud
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert not page.all("link")
    policy = [meta["content"] for meta in page.all("meta") if "Policy" in meta.get("http-equiv", "")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == [f"default-src 'none'; img-src data:; script-src 'sha256-{digest}'; style-src 'unsafe-inline'"]
    assert not re.search(r"eval|Function|import\(|innerHTML|fetch|XMLHttp", script)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in page.text


@pytest.mark.usefixtures("no_drawing")
def test_what_files_and_folders_are_called_is_text_and_never_markup(log_dir, records, write_history):
    folder = log_dir.rename(log_dir.with_name(NASTY.replace("/", "∕")))
    genotype = Genotype.from_dict(records[-1]["genotype"] | {"name": NASTY})
    genotype.save(folder / "genotype.json")
    records[0]["genotype"]["name"] = NASTY
    write_history(folder / "history.jsonl", records)
    (folder / "config.yaml").write_text(f"data:\n  sources: [{json.dumps(NASTY)}]\n# {NASTY}\n")
    page = read(write_report(folder))
    assert page.all("script") == [{}]  # our own; the policy lets no other run
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert len(page.pictures()) == 17
    assert page.text.count(NASTY) >= 3  # genotype's name, settings, configuration
    assert folder.name in page.text


@pytest.mark.usefixtures("no_drawing")
def test_the_code_on_the_page_builds_the_network(log_dir):
    folder = log_dir.rename(log_dir.with_name("a b; 'c'"))
    page = read(write_report(folder))
    start = page.text.index("import torchreid, torchreid_autoreid")
    names: dict = {}
    exec("\n".join(page.text[start:].splitlines()[:3]), names)
    assert names["model"].genotype == Genotype.load(folder / "genotype.json")


def notes(page):
    return re.findall(r"<p class=note>(.*?)</p>", page.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("no_drawing")
def test_a_search_that_runs_still_or_was_torn_or_moved_is_noted(log_dir, records, write_history):
    write_history(log_dir / "history.jsonl", records[1:3])
    with open(log_dir / "history.jsonl", "a") as file:
        file.write(json.dumps(records[3])[:200])
    (log_dir / "config.yaml").unlink()
    running, late, torn, other, missing = notes(write_report(log_dir))
    assert "still running, or was stopped: 3 of 4" in running
    assert "begins with epoch 2" in late
    assert "torn" in torn
    assert "not the genotype of the last epoch" in other
    assert "no config.yaml" in missing


@pytest.mark.usefixtures("no_drawing")
def test_a_search_that_ended_early_says_why(log_dir, records, write_history):
    last = records[2] | {"ended": f"too many skip connections {NASTY}"}
    write_history(log_dir / "history.jsonl", [*records[:2], last])
    Genotype.from_dict(records[1]["genotype"]).save(log_dir / "genotype.json")
    ended, other = notes(write_report(log_dir))
    assert ended.startswith("The search ended after 3 of 4 epochs: too many skip connections &lt;script&gt;")
    assert "not the genotype of the last epoch" in other


def test_a_search_of_one_epoch_without_retrieval_has_a_page(log_dir, make_record, write_history):
    record = make_record(1, 1, blocks=1)
    write_history(log_dir / "history.jsonl", [record])
    Genotype.from_dict(record["genotype"]).save(log_dir / "genotype.json")
    page = read(write_report(log_dir))
    assert "held-out mAP" not in page.text
    assert len(page.pictures()) == 11


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("config", ["a: [", "- 1\n- 2", "data: 3", "", "data: {sources: {}}", "\0", "[" * 5000])
def test_a_configuration_of_another_shape_is_shown_as_it_is(log_dir, config):
    (log_dir / "config.yaml").write_text(config)
    page = write_report(log_dir).read_text(encoding="utf-8")
    assert ">Epoch by epoch</h2>" in page
    assert "pixels" not in page
    assert "<summary>config.yaml</summary>" in page


def kept(records, path="a/b.jpg"):
    """Queries of the best measurement: the second answer is right."""
    answers = [(Image(8, 1, path), 0.25), (Image(7, 2, path), 0.5), (Image(9, None, ""), 0.75)]
    group = [Query(3, Image(7, 1, path), 0.5, 2, answers)]
    return Queries(4, records[3]["retrieval"]["mAP"], 321, {"worst": group, "best": group})


@pytest.mark.usefixtures("no_drawing")
def test_queries_are_shown_with_right_and_wrong_answers(log_dir, records):
    kept(records, NASTY).save(log_dir / "queries.json")
    page = read(write_report(log_dir, read_jpeg=lambda path: path.encode(), pictures=1))
    assert [one["class"] for one in page.all("li") if "class" in one] == ["wrong", "right", "wrong"] * 2
    text = " ".join(page.text.split())
    assert "Of the search network in epoch 4, the best of 50.0% mAP on 321 queries" in text
    assert "Query 3: person 7, camera 1 Average precision 50.0%; first true match at rank 2." in text
    assert "✗ other person 8camera 1, 0.250 ✓ same person 7camera 2, 0.500 ✗ other person 9" in text
    assert text.index("The worst queries") < text.index("The best queries")
    # The images of one query only, the worst: its own, and those of the answers that have a file.
    images = [one["src"] for one in page.all("img")]
    assert images == [f"data:image/jpeg;base64,{base64.b64encode(NASTY.encode()).decode()}"] * 3
    assert not read(write_report(log_dir)).all("img")


@pytest.mark.usefixtures("no_drawing")
def test_queries_that_are_missing_torn_or_of_another_history_are_left_out(log_dir, records):
    assert "holds no queries.json of this history" in write_report(log_dir).read_text()
    for content, told in (
        (b"{", "queries.json was left out: .* holds no queries of a search"),
        (json.dumps({"groups": {"&lt;": []}}).encode(), "queries.json was left out"),
    ):
        (log_dir / "queries.json").write_bytes(content)
        (note,) = notes(write_report(log_dir))
        assert re.search(told, note)
    found = kept(records)
    for other in (replace(found, epoch=3), replace(found, mAP=0.1), replace(found, epoch=99)):
        other.save(log_dir / "queries.json")
        (note,) = notes(write_report(log_dir))
        assert f"of another history (its epoch {other.epoch}) and was left out" in note


@pytest.mark.usefixtures("no_drawing")
def test_provenance_says_when_where_and_from_what(log_dir):
    assert "neither on which machine nor with which versions" in write_report(log_dir).read_text()
    for epoch in (1, 3):
        note_start(log_dir, {"training images": f"12 {NASTY}"}, Start.now(epoch, "a device", argv=["autoreid", NASTY]))
    page = read(write_report(log_dir))
    for words in ("started", "went on, epoch 3", "a device", "Python 3.", NASTY, "SHA-256 of history.jsonl"):
        assert words in page.text
    (log_dir / FILE).write_text("{")
    (note,) = notes(write_report(log_dir))
    assert note.startswith("provenance.json was left out: ")


def test_the_same_log_gives_the_same_page(whole_page, tmp_path):
    again = write_report(whole_page.parent, tmp_path / "again.html", costs=COSTS)
    assert again.read_bytes() == whole_page.read_bytes()


@pytest.mark.usefixtures("no_drawing")
def test_a_page_is_replaced_in_one_step(log_dir, monkeypatch):
    page = write_report(log_dir)
    page.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    before = set(log_dir.iterdir())
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, step, fail)
            with pytest.raises(UserError, match=r"cannot write the report .*report\.html: No space left on device"):
                write_report(log_dir)
        assert page.read_text() == "old"
        assert set(log_dir.iterdir()) == before
    write_report(log_dir)
    assert page.read_text().startswith("<!doctype html>")
    assert set(log_dir.iterdir()) == before


@pytest.mark.usefixtures("no_drawing")
def test_what_cannot_be_reported_is_said_in_a_line(log_dir, tmp_path, monkeypatch):
    def refused(message, *arguments):
        with pytest.raises(UserError, match=message) as error:
            write_report(*arguments)
        assert "\n" not in str(error.value)

    history = (log_dir / "history.jsonl").read_bytes()
    refused("no log folder .*nowhere", tmp_path / "nowhere")
    refused("no log folder .*history.jsonl", log_dir / "history.jsonl")
    refused(r"holds no history\.jsonl, so it is no log", tmp_path)
    refused(r"ends in \.html, not '.*history\.jsonl'", log_dir, log_dir / "history.jsonl")
    assert (log_dir / "history.jsonl").read_bytes() == history
    refused(r"ends in \.html, not ''|ends in \.html, not '\.'", log_dir, "")
    refused("cannot write the report .*No such file or directory", log_dir, tmp_path / "no" / "page.html")
    (tmp_path / "folder.html").mkdir()
    refused("cannot write the report .*Is a directory", log_dir, tmp_path / "folder.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "search"]
    with monkeypatch.context() as patch:
        patch.setattr(log, "_MAX_CONFIG_BYTES", 10)
        refused(r"config\.yaml has \d+ bytes, which is no configuration", log_dir)
    (log_dir / "genotype.json").write_text("{}")
    refused(r"genotype\.json: a genotype needs the key", log_dir)
    (log_dir / "genotype.json").unlink()
    refused(r"holds no genotype\.json", log_dir)


def test_the_command_writes_the_page_and_prints_its_path(log_dir, tmp_path):
    output = tmp_path / "page.html"
    done = completed("report.py", ["--log-dir", log_dir, "--output", output], draws=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}\n"
    assert read(output).pictures()


def test_the_command_tells_a_mistake_in_a_line(tmp_path):
    done = completed("report.py", ["--log-dir", tmp_path])
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "holds no history.jsonl" in line
    assert "Traceback" not in done.stderr


@pytest.fixture
def selected(log_dir, records, write_history):
    """A search whose alphas proposed two candidates beside a blind one; the second is the answer."""
    folder = log_dir / "selection"
    folder.mkdir()
    own, (other, third) = Genotype.from_dict(records[-1]["genotype"]), list(Genotype.presets().values())[:2]
    named = [replace(own, name="searched"), replace(other, name="proposed_0"), replace(third, name="blind_0")]
    found = [
        records[0]
        | {"epoch": number, "epochs": 3, "alpha": None, "retrieval": records[-1]["retrieval"]}
        | {"candidate": CandidateRecord(number=number, rung=1, genotype=one, score=score).to_dict()}
        for number, one, score in zip((1, 2, 3), named, (0.2, 0.375, 0.3), strict=True)
    ]
    write_history(folder / "history.jsonl", found)
    named[1].save(log_dir / "genotype.json")
    (log_dir / "config.yaml").write_text("search: {strategy: darts, selection: halving}\n")
    return log_dir


def test_the_page_has_the_candidates_of_a_selection_and_how_it_chose(selected, no_drawing):
    page = read(write_report(selected))
    assert "3 candidates were measured, and the best is number 2 with 37.5% mAP" in page.text
    assert "What the alphas proposed" in page.text
    for origin in ("preferred by the alphas", "drawn from the alphas", "drawn blindly"):
        assert origin in page.text
    assert re.search(r"answer, held-out mAP\s*37.5%\s*candidate 2 of 3", page.text)
    assert "the genotype that the alphas prefer" in page.text
    assert "not the genotype of the last epoch" not in page.text  # it is one of the candidates
    assert "of it for the selection" in page.text
    assert "SHA-256 of selection/history.jsonl" in page.text
    assert "darts · selection by halving" in page.text
    assert not read_log(selected).running


def test_what_the_verdict_says_of_the_cells_is_of_the_answer(selected):
    own = Genotype.load(selected / "genotype.json")
    skips = Genotype("proposed_0", tuple(((("skip_connect", 0), ("skip_connect", 1)),) * own.blocks), own.reduce)
    log = read_log(selected)
    texts = [sentence.text for sentence in verdict(log.records, log.selection, skips)]
    assert any("The normal cell has collapsed: 8 of its 8" in text for text in texts)
    assert not any("has collapsed" in sentence.text for sentence in verdict(log.records, log.selection, log.genotype))


def test_a_selection_in_progress_is_told(selected, no_drawing):
    history = selected / "selection" / "history.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:2]) + lines[2][:40])
    log = read_log(selected)
    still, torn = log.notes()
    assert still == "The selection that follows the alphas is still running, or was stopped: 2 of 3 epochs are done."
    assert torn.startswith("The last line of selection/history.jsonl is torn")
    assert status(log, True, 1.0).startswith("Epoch 3 of 3 of the selection is running; about 12 s left")
    assert status(log, False, 1.0) == "The search is not running: 2 of 3 epochs of the selection are done."
    assert re.search(r"best candidate so far, held-out mAP\s*37.5%\s*candidate 2\s", read(write_report(selected)).text)
    history.unlink()  # the alphas have ended, and no candidate has had an epoch
    log = read_log(selected)
    assert "the selection that follows them is missing" in next(iter(log.notes()))
    assert "the first candidate of the selection is in training" in status(log, True, 1.0)
    assert "and no candidate of its selection" in status(log, False, 1.0)


def test_a_page_follows_the_selection(selected):
    follower = Follower(selected, dict)
    before = follower.version()
    with open(selected / "selection" / "history.jsonl", "a") as file:
        file.write("{")
    assert follower.version() != before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "history.jsonl").write_text("{}\n" * 3), "selection was left out: line 1"),
        (lambda folder: folder.rename(folder.with_name("gone")) and folder.write_text(""), "selection is no folder"),
    ],
)
def test_a_damaged_selection_is_left_out_and_told(selected, damage, words, no_drawing):
    damage(selected / "selection")
    notes = " ".join(read_log(selected).notes())
    assert words in notes
    assert "genotype.json is not the genotype of the last epoch" in notes
    assert not read_log(selected).selection
    write_report(selected)


def test_a_selection_of_other_alphas_is_left_out_and_told(selected, records, write_history):
    """As of a search that has gone on since, or of another one."""
    write_history(selected / "history.jsonl", [*records[:-1], records[-1] | {"genotype": records[0]["genotype"]}])
    log = read_log(selected)
    assert not log.selection
    assert "selection/ is not of these alphas and was left out." in list(log.notes())
