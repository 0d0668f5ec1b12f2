"""``autoreid gallery serve``: the page in a real browser, on drawn pedestrians; the server, asked by others."""

import base64
import http.client
import json
import random
import time
from contextlib import contextmanager
from functools import partial
from threading import Thread

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from torch import nn

from torchreid_autoreid.commands import execute, gallery
from torchreid_autoreid.data.drawing import CAMERAS, draw_people, photograph
from torchreid_autoreid.deploy.export import write_onnx
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.gallery import Gallery
from torchreid_autoreid.gallery import serve as module
from torchreid_autoreid.gallery.serve import serve

NAMES = ["ann", "<img src=x onerror=alert(1)>", "cem"]


class Stripes(nn.Module):
    """The mean colours of eight stripes of a person."""

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images, (8, 1)).flatten(1)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("network") / "stripes.onnx"
    described = {"height": 64, "width": 32, "norm_mean": [0.5] * 3, "norm_std": [0.5] * 3}
    write_onnx(Stripes().eval(), torch.zeros(2, 3, 64, 32), path, described)
    return path


@pytest.fixture(scope="module")
def people(tmp_path_factory, network):
    """A gallery of three drawn pedestrians, and one more picture of each, and of a stranger."""
    place = tmp_path_factory.mktemp("people")
    drawn = draw_people(4, random.Random(3))
    shots = [
        [photograph(person, CAMERAS[0], random.Random(f"{number}/{shot}")) for shot in range(4)]
        for number, person in enumerate(drawn)
    ]
    paths = []
    for number, images in enumerate(shots):
        paths.append(place / f"asked{number}.png")
        images[0].save(paths[-1])
    model = gallery._network(str(network))
    features = torch.cat([model(model.preprocess(image)[None]) for images in shots[:3] for image in images[1:]])
    folder = place / "gallery"
    Gallery.build(folder, features, np.repeat(NAMES, 3), gallery._checksum(str(network))).close()
    return folder, paths


@contextmanager
def served(people, network, **options):
    model = gallery._network(str(network))
    with Gallery.open(people[0]) as opened:
        server = serve(opened, partial(gallery._features_of_picture, model), port=0, **options)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def ask(server, method="POST", path="/query", body=b"", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response, json.loads(text) if response.headers["Content-Type"] == "application/json" else text


def test_the_answer_is_that_of_the_gallery(people, network):
    folder, paths = people
    model = gallery._network(str(network))
    with served(people, network, top=2) as server, Gallery.open(folder) as opened:
        for path in paths:
            response, found = ask(server, body=path.read_bytes())
            assert response.status == 200
            expected = opened.query(gallery._features_of_picture(model, path.read_bytes()), top=2, threshold=0)
            assert [person["pid"] for person in found["people"]] == expected.ranked_pids[0].tolist()
            assert [person["score"] for person in found["people"]] == expected.ranked_scores[0].tolist()
            assert found["margin"] == expected.margins[0]
            assert (found["threshold"], found["stale"], found["enrolled"]) == (None, False, 3)


def test_a_calibration_and_its_age_are_told(people, network, tmp_path):
    folder, paths = tmp_path / "gallery", people[1]
    model = gallery._network(str(network))
    features = np.random.default_rng(0).normal(size=(60, 24))
    with Gallery.build(folder, features, np.arange(60) // 2) as opened:
        calibration = opened.calibrate(0.1)
        with served((folder, paths), network) as server:
            found = ask(server, body=paths[0].read_bytes())[1]
            assert (found["threshold"], found["stale"], found["margin"] > 0) == (calibration.threshold, False, True)
            opened.remove(range(1, 30))  # what another process does is seen
            found = ask(server, body=paths[0].read_bytes())[1]
            assert (found["stale"], found["margin"], found["people"][0]["pid"]) == (True, None, "0")
            opened.remove(0)
            response, found = ask(server, body=paths[0].read_bytes())
            assert response.status == 422
            assert "nobody is enrolled" in found["error"]
    with served((people[0], paths), network, threshold=0.25) as server:
        assert ask(server, body=paths[0].read_bytes())[1]["threshold"] == 0.25
    assert model is not None


@pytest.mark.parametrize("body", [b"", b"no picture", b"\x89PNG\r\n\x1a\n torn"], ids=["empty", "text", "torn"])
def test_what_is_no_picture_gives_one_line(people, network, body):
    with served(people, network) as server:
        response, found = ask(server, body=body)
        assert response.status == 422
        assert found["error"].startswith("cannot read the picture (")
        assert "\n" not in found["error"]
        assert "/tmp" not in found["error"]
        assert ask(server, body=people[1][0].read_bytes())[0].status == 200  # and it goes on


def test_only_this_machine_and_this_page_are_answered(people, network, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with served(people, network) as server:
        assert server.server_address[0] == "127.0.0.1"
        own = f"127.0.0.1:{server.server_port}"
        picture = b"x" * 10
        for headers in ({"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Origin": "http://evil.example"}):
            for method, path in (("GET", "/"), ("POST", "/query")):
                response, found = ask(server, method, path, picture, **headers)
                assert response.status == 403
                assert own in found["error"]
        assert ask(server, body=picture, Origin=f"http://{own}")[0].status == 422
        assert ask(server, body=b"x" * 1001)[0].status == 413
        assert ask(server, "GET", "/../gallery.py")[0].status == 404
        assert ask(server, "GET", "/gallery.sqlite")[0].status == 404
        assert ask(server, "POST", "/")[0].status == 404
        assert ask(server, **{"Content-Length": "-1"})[0].status == 404
        response, page = ask(server, "GET", "/")
        assert b"Who is this?" in page
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_mistakes_are_told_before_anything_is_served(people, network, tmp_path):
    folder = people[0]

    def run(*words):
        return execute("gallery", [str(word) for word in words])

    with served(people, network) as server, pytest.raises(UserError, match=r"--port \d+ cannot be used"):
        run("serve", folder, "--weights", network, "--port", server.server_port)
    for words, says in (
        ((folder,), "needs --weights"),
        ((folder, "--weights", network, "--csv", "a.csv"), "--csv has no effect on gallery serve"),
        ((folder, "--weights", network, "--port", 70000), "--port 70000 cannot be used"),
        ((folder, "--weights", network, "--threshold", "nan"), "--threshold nan is no cosine similarity"),
        ((folder, "--weights", network, "--top", 0), "top is 0"),
        ((tmp_path, "--weights", network), "holds no gallery"),
    ):
        with pytest.raises(UserError, match=says):
            run("serve", *words)
    other = tmp_path / "other.onnx"
    other.write_bytes(network.read_bytes() + b" ")
    with pytest.raises(UserError, match="another network"):
        run("serve", folder, "--weights", other)
    Gallery.build(tmp_path / "wide", np.eye(5), np.arange(5)).close()
    with pytest.raises(UserError, match=r"gives 24 dimensions, and .* has 5"):
        run("serve", tmp_path / "wide", "--weights", network)


# --- in a browser ----------------------------------------


def wait_for(browser, expression):
    end = time.monotonic() + 30
    while not browser.evaluate(expression):
        assert time.monotonic() < end, browser.evaluate("document.body.innerText")
        time.sleep(0.05)


def dropped(browser, data, name="crop.png"):
    """Drops a file on the page, as the events of a mouse would."""
    text = base64.b64encode(data).decode()
    browser.evaluate(
        f"""(() => {{
          const bytes = Uint8Array.from(atob("{text}"), (letter) => letter.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "{name}"));
          document.querySelector("#drop").dispatchEvent(
            new DragEvent("drop", {{dataTransfer: data, bubbles: true, cancelable: true}}));
        }})()"""
    )
    wait_for(browser, "!answer.textContent.startsWith('looking')")
    return browser.evaluate("answer.textContent")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_a_person_drops_a_crop_and_sees_who_it_is(people, network):
    _, (ann, markup, _, stranger) = people
    browser = Browser()
    model = gallery._network(str(network))
    with Gallery.open(people[0]) as opened:
        own = float(opened.query(gallery._features_of_picture(model, ann.read_bytes()), threshold=0).scores[0])
    try:
        with served(people, network, threshold=own - 0.01) as server:
            address = f"http://127.0.0.1:{server.server_port}/"
            browser.open(address)
            assert dropped(browser, ann.read_bytes()).startswith(f"ann (score {own:.3f}, ")
            assert float(browser.evaluate("slider.value")) == pytest.approx(own - 0.01, abs=0.001)
            assert browser.evaluate("rows.rows.length") == 3
            wait_for(browser, "crop.complete && crop.naturalWidth > 0 && !crop.hidden")
            # a name is text
            browser.evaluate("slider.value = -1; slider.dispatchEvent(new Event('input'))")
            assert dropped(browser, markup.read_bytes()).startswith(f"{NAMES[1]} (score ")
            assert browser.evaluate("document.querySelectorAll('main img').length") == 1
            assert browser.evaluate("rows.rows[0].cells[0].textContent") == NAMES[1]
            # the slider
            scores = browser.evaluate("last.people.map((person) => person.score)")
            for value, known in ((scores[0] + 0.001, False), (scores[0] - 0.002, True), (-1, True), (1, False)):
                browser.evaluate(f"slider.value = {value}; slider.dispatchEvent(new Event('input'))")
                assert browser.evaluate("answer.textContent").startswith(NAMES[1] if known else "unknown")
            known = browser.evaluate("[...rows.rows].map((row) => row.cells[2].textContent)")
            assert known == ["no"] * 3
            between = (scores[0] + scores[1]) / 2
            browser.evaluate(f"slider.value = {between}; slider.dispatchEvent(new Event('input'))")
            assert browser.evaluate("[...rows.rows].map((row) => row.cells[2].textContent)") == ["yes", "no", "no"]
            # by the file chooser; nobody is known above the slider
            browser.evaluate("slider.value = 0.999; slider.dispatchEvent(new Event('input'))")
            chooser = browser.call("Runtime.evaluate", expression="file")["result"]["objectId"]
            browser.call("DOM.setFileInputFiles", files=[str(stranger)], objectId=chooser)
            wait_for(browser, "answer.textContent.startsWith('unknown')")
            # what is no picture
            assert dropped(browser, b"no picture").startswith("cannot read the picture (")
            assert browser.evaluate("found.hidden")
            assert dropped(browser, ann.read_bytes()).startswith(("ann", "unknown"))
            roles = browser.roles()
            assert any(role == "slider" and name.startswith("Known from a score of") for role, name in roles)
            assert any(role == "status" for role, _ in roles)
            asked = [url for url in browser.requests() if not url.startswith((address, "blob:"))]
            assert asked == []
            quiet = [said for said in browser.said() if "422" not in str(said)]  # Chromium tells of the refused picture
            assert quiet == []
        assert dropped(browser, ann.read_bytes()) == "the server does not answer; is it still running?"
    finally:
        browser.close()
