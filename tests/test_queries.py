"""Which queries are kept, that a file of them comes back as it was, and that one from elsewhere does no harm."""

import json
import math

import numpy as np
import pytest

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import Embeddings, evaluate
from torchreid_autoreid.queries import ANSWERS, Image, Labels, Queries, chosen


def test_worst_median_and_best_are_taken_by_average_precision():
    precisions = [0.9, math.nan, 0.1, 0.5, 0.5, 0.2, 0.95, 0.3, 0.4, 0.6, 0.7, 0.8, 0.05, 1.0]
    groups = chosen(precisions)
    assert groups == {"worst": [12, 2, 5, 7], "median": [8, 3, 4, 9], "best": [11, 0, 6, 13]}
    assert chosen([0.5] * 4) == {"worst": [0], "median": [1], "best": [3]}  # none is in two groups
    assert chosen([math.nan, 0.2, 0.1]) == {"worst": [2, 1]}
    assert chosen([]) == {"worst": []}


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    query, gallery = (
        Embeddings(rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 4, n), rng.integers(0, 3, n))
        for n in (15, 40)
    )
    result = evaluate(query, gallery, topk=ANSWERS)
    labels = [
        Labels(part.pids.tolist(), part.camids.tolist(), [f"caf\udce9/{n}.jpg" for n in range(len(part))])
        for part in (query, gallery)
    ]
    return Queries.of(3, result, *labels), result


def test_a_file_comes_back_as_it_was(found, tmp_path):
    queries, result = found
    queries.save(tmp_path / "queries.json")
    again = Queries.load(tmp_path / "queries.json")
    assert again == queries
    assert again.mAP == result.mAP
    worst = again.groups["worst"][0]
    assert worst.precision == min(result.average_precision)
    assert worst.answers[0][0].path == f"caf\udce9/{result.topk_indices[worst.number][0]}.jpg"
    assert (tmp_path / "queries.json").stat().st_size < 40_000


def test_images_without_cameras_and_files_have_neither():
    assert Labels([7]).image(0) == Image(7, None, "")


def changed(content, path, value):
    *outer, last = path
    place = content
    for name in outer:
        place = place[name]
    place[last] = value
    return content


QUERY = ("groups", "worst", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("epoch",), 0),
        (("epoch",), True),
        (("epoch",), 1 << 70),
        (("mAP",), 1.5),
        (("mAP",), "0.5"),
        (("groups",), []),
        (("groups",), {"<script>": []}),
        (("groups", "best"), None),
        (("groups", "best"), [{}] * 100),
        (QUERY, []),
        ((*QUERY, "image", "pid"), 1.5),
        ((*QUERY, "image", "camid"), "1"),
        ((*QUERY, "image", "path"), "x" * 5000),
        ((*QUERY, "image", "path"), "a\0b"),
        ((*QUERY, "answers"), [[1, 2]]),
        ((*QUERY, "answers", 0, 1), float("nan")),
        ((*QUERY, "answers", 0, 1), float("inf")),
        ((*QUERY, "answers"), [[{"pid": 1, "path": ""}, 0.0]] * 1000),
    ],
)
def test_another_schema_is_refused_in_a_line(found, tmp_path, path, value):
    place = tmp_path / "queries.json"
    found[0].save(place)
    place.write_text(json.dumps(changed(json.loads(place.read_text()), path, value)))
    with pytest.raises(UserError, match=r"queries\.json holds no queries of a search: .*; restore it, or remove it$"):
        Queries.load(place)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"1" * 5000, b" " * (2 << 20), b"null"])
def test_a_torn_or_huge_file_is_refused(tmp_path, content):
    (tmp_path / "queries.json").write_bytes(content)
    with pytest.raises(UserError, match="holds no queries of a search"):
        Queries.load(tmp_path / "queries.json")
