"""``report --serve``: one page on this machine alone, which follows a search as its files grow."""

import argparse
import http.client
import http.server
import json
import re
import signal
import socket
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from torchreid_autoreid.commands import main, serve
from torchreid_autoreid.commands.serve import Follower, make_server, status
from torchreid_autoreid.engine.run_folder import claim_run_folder, is_claimed
from torchreid_autoreid.errors import UserError


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "search"
    place.mkdir()
    (place / "config.yaml").write_text("data: {sources: [folder]}\n")
    return place


@contextmanager
def served(folder):
    with make_server(Follower(folder, dict)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def asked(port, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def test_only_get_of_this_machine_is_answered(folder):
    with served(folder) as port:
        code, headers, text = asked(port)
        assert code == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert "connect-src 'self'" in text
        assert asked(port, Host=f"localhost:{port}")[0] == 200
        # A name that an attacker lets point to this machine (DNS rebinding)
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""):
            assert asked(port, Host=host)[0] == asked(port, "/state", Host=host)[0] == 403
        for method in ("POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"):
            code, headers, _ = asked(port, method=method)
            assert (code, headers["Allow"]) == (405, "GET")
        for path in ("/config.yaml", "/../config.yaml", "/%2e%2e/", "/?x"):
            assert asked(port, path)[0] == 404
        with socket.create_connection(("127.0.0.1", port)) as rude:  # who says nothing, or nonsense, stops nobody
            rude.sendall(b"\0\xff\r\n\r\n")
            assert asked(port, "/state")[0] == 200


def test_another_machine_cannot_reach_it(folder):
    with make_server(Follower(folder, dict)) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_before_the_first_epoch_the_page_says_so(folder):
    with served(folder) as port:
        said = json.loads(asked(port, "/state")[2])["status"]
        assert said == "No epoch has ended, and no search is running in this folder."
        (folder / "history.jsonl").write_text('{"epoch": 1, "torn')
        claim_run_folder(folder)
        said = json.loads(asked(port, "/state")[2])["status"]
        assert said == "The first epoch is running; how long the search takes is known when it has ended."
        text = asked(port)[2]
        assert said in text
        assert "Nothing can be shown before the first epoch has ended." in text


def test_a_damaged_history_is_told_and_the_next_state_shown(folder):
    with served(folder) as port:
        (folder / "history.jsonl").write_text("<script>\n")
        before = json.loads(asked(port, "/state")[2])["version"]
        code, _, text = asked(port)
        assert code == 200
        assert "Nothing can be shown at the moment: line 1 of " in text
        (folder / "history.jsonl").write_text("")
        assert json.loads(asked(port, "/state")[2])["version"] != before


def test_status_says_how_long_it_takes_yet():
    def log(epochs, last=10, running=True):
        records = [SimpleNamespace(epoch=n, epochs=last, seconds=60.0) for n in range(1, epochs + 1)]
        return SimpleNamespace(records=records, present=records, selects=False, running=running)

    assert status(log(4), True, 0) == "Epoch 5 of 10 is running; about 6 min left of the whole run."
    assert status(log(4), True, 240) == "Epoch 5 of 10 is running; about 2 min left of the whole run."
    assert status(log(9), True, 99) == "Epoch 10 of 10 is running; it takes longer than those before."
    assert status(log(4), False, 0) == "The search is not running: 4 of 10 epochs are done."
    assert status(log(10, running=False), False, 0) == "The search has ended: 10 of 10 epochs."
    assert "still at work" in status(log(10, running=False), True, 0)


def test_a_folder_is_claimed_by_its_writer_and_by_that_around_it(folder):
    (folder / "selection").mkdir()
    assert not is_claimed(folder)
    claim_run_folder(folder)
    assert is_claimed(folder)
    assert is_claimed(folder / "selection")
    assert not is_claimed(folder / "missing" / "selection")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "80"], "--port is an option of --serve"),
        (["--serve", "--output", "x.html"], "--serve shows the page and writes no file"),
        (["--serve", "--port", "99999"], "--port 99999 cannot be used (there are none above 65535)"),
        (["--serve", "other"], "--serve belongs to the report of one search"),
        (["--beside", "x", "other"], "--beside belongs to the report of one search"),
        (["--embed-images", "-1"], "--embed-images must be at least 0, not -1"),
    ],
)
def test_options_that_contradict_are_refused(folder, words, message, capsys):
    assert main(["report", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_log_and_a_port_that_is_taken_are_told_in_a_line(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds neither history\.jsonl nor config\.yaml"):
        serve.serve(argparse.Namespace(port=0), str(tmp_path / "empty"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"--port \d+ cannot be used \(Address already in use\)"):
            make_server(Follower(folder, dict), taken.getsockname()[1])


def test_ctrl_c_ends_it_without_a_word(folder, monkeypatch, capsys):
    def ctrl_c(server):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(http.server.ThreadingHTTPServer, "serve_forever", ctrl_c)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["report", str(folder), "--serve"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", out)
    assert err == ""
