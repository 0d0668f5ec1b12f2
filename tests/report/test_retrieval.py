"""The page of an evaluation says what the distances say: beside it, the slow way to the same figures."""

import base64
import hashlib
import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from torchreid_autoreid.commands import execute
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, evaluate, load_embeddings, roc
from torchreid_autoreid.report.retrieval import (
    ANSWERS,
    FALSE_ACCEPTS,
    Evaluated,
    _bootstrap,
    _verification,
    camera_table,
    write_retrieval,
)

NASTY = "<script>alert(1)</script>'\"&"


def part(count, seed, cameras=3, dimension=8):
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, 9, count)
    centres = np.random.default_rng(7).normal(size=(9, dimension))
    features = (centres[pids] + rng.normal(0, 1.1, (count, dimension))).astype(np.float32)
    return Embeddings(features, pids, rng.integers(0, cameras, count))


@pytest.fixture(scope="module")
def parts():
    return part(50, 0), part(200, 1)


@pytest.fixture
def features(tmp_path, parts):
    arrays = {
        f"{side}_{name}": getattr(embeddings, name)
        for side, embeddings in zip(("query", "gallery"), parts, strict=True)
        for name in ("features", "pids", "camids")
    }
    np.savez(tmp_path / "f.npz", **arrays)
    return tmp_path / "f.npz"


def cosine(query, gallery):
    units = [part.features / np.linalg.norm(part.features, axis=1, keepdims=True) for part in (query, gallery)]
    return 1 - units[0].astype(float) @ units[1].T.astype(float)


def rows_of(text, caption):
    """The cells of the table with that caption."""
    (table,) = [found for found in re.findall(r"<table.*?</table>", text, flags=re.DOTALL) if caption in found]
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_the_page_through_the_command(features, parts, tmp_path):
    page = tmp_path / "page.html"
    options = ["--rerank", "--k1", "5", "--k2", "2"]
    execute("evaluate", ["--features", str(features), *options, "--report", str(page)])
    text = page.read_text(encoding="utf-8")
    plain, reranked = evaluate(*parts, topk=10), evaluate(*parts, rerank=True, k1=5, k2=2, topk=10)
    assert "<h1>Retrieval: f.npz</h1>" in text
    assert f"<div>mAP<b>{reranked.mAP:.1%}</b>plain {plain.mAP:.1%}</div>" in text
    assert f"Re-ranking changes mAP by {100 * (reranked.mAP - plain.mAP):+.1f} points, from {plain.mAP:.1%}." in text
    ranks = rows_of(text, "The same in numbers")
    assert ranks[0][1:] == ["rank-1", "rank-2", "rank-3", "rank-5", "rank-10", "rank-20", "rank-50"]
    assert ranks[1] == ["re-ranked", *(f"{reranked.rank(rank):.2%}" for rank in (1, 2, 3, 5, 10, 20, 50))]
    assert ranks[2][0] == "plain"
    # The hardest query comes first, with its answers in the order of the ranking.
    hardest = int(np.nanargmin(reranked.average_precision))
    title = f"Query {hardest}: person {parts[0].pids[hardest]}, camera {parts[0].camids[hardest]}"
    assert re.findall(r"<h3>(.*?)</h3>", text)[0] == title
    assert text.count("<h3>Query ") == 12
    cards = re.findall(r'<li class="(right|wrong)">\s*<b>(.) \w+</b> person (\d+)<br>', text)[:ANSWERS]
    answers = reranked.topk_indices[hardest]
    right = parts[1].pids[answers] == parts[0].pids[hardest]
    assert cards == [
        ("right" if same else "wrong", "✓" if same else "✗", str(parts[1].pids[answer]))
        for same, answer in zip(right, answers, strict=True)
    ]
    # Who is taken for whom, counted by hand.
    first = parts[1].pids[reranked.topk_indices[:, 0]]
    counted = ~np.isnan(reranked.average_precision)
    wrong = Counter(
        (person, other)
        for person, other, known in zip(parts[0].pids.tolist(), first.tolist(), counted, strict=True)
        if known and person != other
    )
    rows = rows_of(text, "somebody else")[1:]
    assert [int(row[2]) for row in rows] == sorted(wrong.values(), reverse=True)[:20]
    assert all(wrong[int(person), int(other)] == int(times) for person, other, times, _ in rows)


def test_nothing_but_our_own_script_may_run(parts, tmp_path):
    page = write_retrieval(Evaluated(NASTY, NASTY, *parts, evaluate(*parts, topk=10)), tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "alert(1)" not in script
    assert text.count("&lt;script&gt;alert(1)") == 3  # title, heading, description


def test_rates_and_thresholds_are_those_of_all_pairs(parts):
    query, gallery = parts
    shown = _verification(roc(query, gallery, FALSE_ACCEPTS))
    distances = cosine(query, gallery)
    own = query.pids[:, None] == gallery.pids
    true = distances[own & (query.camids[:, None] != gallery.camids)]
    false = distances[~own]
    assert f"{len(true)} true and {len(false)} false pairs" in shown["table"].caption
    assert len(shown["table"].rows) == sum(rate * len(false) >= 1 for rate in FALSE_ACCEPTS)
    for rate, threshold, accepted, reached in shown["table"].rows:
        limit = float(threshold) * (1 + 1e-3)
        assert np.mean(true <= limit) == pytest.approx(float(accepted.rstrip("%")) / 100, abs=0.02)
        assert float(reached) <= float(rate)
        assert np.mean(false <= float(threshold) * (1 - 1e-3)) <= float(rate)
    assert shown["drawing"].count("<line data-steps=") == len(shown["labels"]) == len(shown["table"].rows)
    assert len(re.findall(r"<line [^>]*hidden", shown["drawing"])) == len(shown["labels"]) - 1


def test_the_histograms_are_those_of_all_pairs(parts):
    query, gallery = parts
    curve = roc(query, gallery, [0.1])
    distances = cosine(query, gallery)
    own = query.pids[:, None] == gallery.pids
    pairs = distances[~own], distances[own & (query.camids[:, None] != gallery.camids)]
    assert curve.pairs.sum(axis=1).tolist() == [len(of) for of in pairs]
    assert (np.diff(curve.distances) > 0).all()
    for counts, of in zip(curve.pairs, pairs, strict=True):
        until = np.cumsum(counts)
        for place in range(0, len(counts) - 1, 7):
            below = (
                (of < curve.distances[place + 1] * (1 - 1e-6)).sum(),
                (of < curve.distances[place + 1] * (1 + 1e-6)).sum(),
            )
            assert below[0] <= until[place] <= below[1]
    points = re.findall(r'<polygon points="(.*?)"', _verification(curve)["drawing"])
    for outline, of in zip(points, pairs, strict=True):
        x, y = np.array([point.split(",") for point in outline.split()], dtype=float).T
        heights = 246 - y[1:-1:2]  # of the bars, from the foot of the drawing
        middles = (x[1:-1:2] + x[2:-1:2]) / 2
        start, end = float(curve.distances[0]), float(distances.max())
        mean = start + (middles - x[0]) / (x[-1] - x[0]) @ heights / heights.sum() * (end - start)
        assert mean == pytest.approx(of.mean(), abs=0.02)


def test_a_pair_of_cameras_is_what_an_evaluation_of_it_alone_gives(parts):
    query, gallery = parts
    found = camera_table(query, gallery)
    assert set(found) == {(one, other) for one in range(3) for other in range(3) if one != other}
    own, seen = (side.take(np.flatnonzero(side.camids == camera)) for side, camera in ((query, 2), (gallery, 0)))
    distances = cosine(own, seen)
    nearest = seen.pids[np.argmin(distances, axis=1)]
    counted = np.isin(own.pids, seen.pids)
    assert found[2, 0][0] == counted.sum()
    assert found[2, 0][1] == pytest.approx(np.mean((nearest == own.pids)[counted]))
    assert camera_table(Embeddings(query.features, query.pids), Embeddings(gallery.features, gallery.pids)) is None
    assert camera_table(part(60, 0, cameras=30), part(60, 1, cameras=30)) is None


def test_the_interval_of_the_mean_takes_the_queries_of_a_person_together():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(0.5, 0.1, 200), 10)  # ten queries a person, all alike
    low, high = _bootstrap(values, np.repeat(np.arange(200), 10))
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 200**0.5, rel=0.15)
    assert _bootstrap(np.append(values, np.nan), np.append(np.repeat(np.arange(200), 10), 999)) == (low, high)


def test_features_without_cameras_and_with_junk_have_a_page_too(features, parts, tmp_path):
    arrays = dict(np.load(features))
    np.savez(features, **{name: values for name, values in arrays.items() if "camids" not in name})
    execute("evaluate", ["--features", str(features), "--junk-pid", "3", "--report", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "Not shown: junk is passed over here" in text
    assert "Not shown: cameras are not known" in text
    assert "camera " not in "".join(re.findall(r"<h3>(.*?)</h3>", text))
    query, _ = load_embeddings(features)
    assert f"<div>queries<b>{(query.pids != 3).sum()}</b>" in text


def test_one_person_alone_has_a_page_too(tmp_path):
    one = np.ones((2, 4), np.float32)
    labels = {f"{side}_{name}": [0, 0] for side in ("query", "gallery") for name in ("pids", "camids")}
    np.savez(tmp_path / "f.npz", query_features=one, gallery_features=one, **labels | {"gallery_camids": [1, 2]})
    execute("evaluate", ["--features", str(tmp_path / "f.npz"), "--report", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "there is one person only" in text
    assert "Every first answer is right." in text


def test_images_are_embedded_for_as_many_queries_as_asked(parts, tmp_path):
    read = []

    def jpeg(path):
        read.append(path)
        buffer = io.BytesIO()
        Image.new("RGB", (4, 8)).save(buffer, "JPEG")
        return buffer.getvalue()

    query, gallery = parts
    names = [[f"{NASTY}{side}{row}.jpg" for row in range(len(of))] for side, of in (("q", query), ("g", gallery))]
    found = Evaluated(
        "x", "cosine", query, gallery, evaluate(*parts, topk=10), query_paths=names[0], gallery_paths=names[1]
    )
    text = write_retrieval(found, tmp_path / "page.html", jpeg, 2).read_text()
    assert len(re.findall('<img src="data:image/jpeg;base64,', text)) == len(read) == 2 * (1 + ANSWERS)
    hardest = int(np.nanargmin(found.result.average_precision))
    answers = [names[1][row] for row in found.result.topk_indices[hardest]]
    assert set(read[: 1 + ANSWERS]) == {names[0][hardest], *answers}
    assert text.count("&lt;script&gt;") > 20  # names, as text
    read.clear()
    assert "<img" not in write_retrieval(found, tmp_path / "page.html", jpeg).read_text()
    assert not read


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "x.pdf"], r"--report is a web page; give it a name that ends in \.html"),
        (["--report", "/no/such/x.html"], "cannot write --report"),
        (["--report", "x.html", "--pool", "mean"], "--report shows images"),
        (["--report", "x.html", "--embed-images", "3"], "option of --report with --weights"),
        (["--embed-images", "3"], "option of --report with --weights"),
    ],
)
def test_what_makes_no_page_is_refused_before_the_work(features, options, words, monkeypatch):
    monkeypatch.chdir(features.parent)
    with pytest.raises(UserError, match=words):
        execute("evaluate", ["--features", str(features), *options])
    assert not list(features.parent.glob("x.*"))
