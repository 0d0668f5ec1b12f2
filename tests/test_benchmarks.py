"""What the benchmarks answer to odd options: a line, and status 2."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from torchreid_autoreid.commands.console import run

BENCHMARKS = Path(__file__).resolve().parents[1] / "projects" / "benchmarks"
NAMES = ("accuracy", "answers", "evaluation", "gallery", "inference", "search_step", "signals", "study", "truth")
#: each takes whole numbers of at least one
NUMBERS = {
    "accuracy": ("seeds", "trainings", "jobs", "threads", "train-epochs"),
    "answers": ("candidates", "seeds", "epochs"),
    "evaluation": ("rounds", "threads", "dimension", "queries", "items", "gallery"),
    "gallery": ("draws", "dimension", "queries", "threads", "enrolled"),
    "inference": ("rounds", "batch", "threads"),
    "search_step": ("channels", "batch", "rounds", "repeats", "threads"),
    "signals": ("genotypes", "one-shot-epochs"),
    "study": ("workers", "trials"),
    "truth": ("genotypes", "seeds", "epochs"),
}


@pytest.fixture
def answer(monkeypatch, tmp_path, capsys):
    """Runs a benchmark in this process, in an empty folder; gives its status, and what it wrote to stderr."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, hook, getattr(sys, hook))

    def answered(name, *options):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        capsys.readouterr()
        try:
            status = run(module.main)
        except SystemExit as error:
            status = error.code
        return status, capsys.readouterr().err.splitlines()

    yield answered
    for name in (*NAMES, "given"):  # short names, which nothing else is to find
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_none_are_refused(name, answer):
    needed = ["--output", "out"] if name == "accuracy" else []
    for option in NUMBERS[name]:
        for value in ("-1", "0", "1.5", "nan", "x", "9" * 5000):
            status, errors = answer(name, *needed, f"--{option}", value)
            assert status == 2
            assert f"argument --{option}: " in errors[-1]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("accuracy", ["--output", "none", "--table"], "holds no results yet"),
        ("accuracy", ["--output", "none"], "give --root DIR"),
        ("accuracy", ["--output", "none", "--seconds", "nan"], "no number above 0"),
        ("answers", ["--output", "none", "--table"], "holds no results yet"),
        ("evaluation", [], "needs --data"),
        ("evaluation", ["--json", "none/a.json"], "cannot write --json none/a.json"),
        ("gallery", [], "give --data"),
        ("gallery", ["--data", "none.npz"], "there is no file none.npz"),
        ("gallery", ["--enrolled", "9", "--far", "1"], "no number above 0 and below 1.0"),
        ("inference", ["--json", "none/a.json"], "cannot write --json none/a.json"),
        ("inference", ["--size", "0", "4"], "argument --size"),
        ("search_step", ["--peer", "none"], "no folder models/DARTS"),
        ("search_step", ["--json", "none/a.json"], "cannot write --json none/a.json"),
        ("signals", ["--alphas", "a", "none"], "none holds no history.jsonl"),
        ("truth", ["--describe", "none.json"], "cannot read the truth set none.json"),
        ("truth", ["--collect", "a.json", "--output", "none"], "holds no results yet"),
    ],
)
def test_what_is_missing_is_told_in_a_line(name, options, told, answer):
    status, errors = answer(name, *options)
    assert status == 2
    assert told in errors[-1]
    assert "Traceback" not in "".join(errors)


def test_a_torn_line_of_results_is_named(answer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "share-1-of-1.jsonl").write_text(json.dumps({"mAP": 0.1}) + '\n{"mAP": 0.')
    status, errors = answer("truth", "--collect", "a.json", "--output", "out")
    assert (status, len(errors)) == (2, 1)
    assert "line 2 of out/share-1-of-1.jsonl is no result" in errors[0]
