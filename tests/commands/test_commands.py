"""The command ``autoreid``: what it says of itself, what it costs to ask, and what it leaves alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from forks import completed

from torchreid_autoreid.commands import execute, main
from torchreid_autoreid.commands.options import COMMANDS
from torchreid_autoreid.config import load_config
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.space.networks import AutoReIDNetwork

ROOT = Path(__file__).resolve().parents[2]


def test_the_overview_names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in [*COMMANDS, "configs"])


def test_an_unknown_command_is_a_mistake_of_the_user(capsys):
    assert main(["serch"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'serch'; choose from search, train")


def test_configs_has_a_help_as_each_command_and_takes_nothing_else(capsys):
    assert main(["configs", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: autoreid configs\n")
    assert main(["configs", "x.yaml"]) == 2
    assert capsys.readouterr().err == "error: autoreid configs takes no x.yaml; leave it out\n"


def test_the_versions_of_what_it_runs_on(capsys):
    assert main(["--version"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("torchreid_autoreid", f"torch {torch.__version__}", "faiss"))


HEAVY = """
import sys
from torchreid_autoreid.commands import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("heavy", *sorted({"torch", "torchreid", "faiss", "matplotlib", "numpy"} & set(sys.modules)))
"""


@pytest.mark.parametrize("words", [["--help"], ["configs"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_that_takes_seconds(words):
    done = subprocess.run([sys.executable, "-c", HEAVY, *words], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "heavy"
    assert len(done.stdout.splitlines()) > 5


def test_a_printed_configuration_is_a_configuration(tmp_path, capsys):
    options = ["--config-file", "autoreid_search.yaml", "--root", "DIR", "train.max_epoch", "7"]
    assert execute("search", [*options, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["train"]["max_epoch"] == 7
    (tmp_path / "printed.yaml").write_text(printed)
    assert load_config(str(tmp_path / "printed.yaml")) == load_config(
        "autoreid_search.yaml", ["train.max_epoch", "7"], root="DIR"
    )


@pytest.mark.parametrize("name", ["search", "train"])
def test_a_dry_run_writes_nothing(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert execute(name, ["--config-file", f"autoreid_{name}.yaml", "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_a_selection_takes(tmp_path, capsys, monkeypatch):
    """Nine candidates for three epochs, the best two of them until their seventh."""
    monkeypatch.chdir(tmp_path)
    options = ["--config-file", "autoreid_search.yaml", "--dry-run", "search.selection", "halving"]
    assert execute("search", [*options, "search.rung_candidates", "[9, 2]", "search.rung_epochs", "[3, 7]"]) == 0
    said = capsys.readouterr().out
    assert "9 networks of 8 channels, [1, 1, 1, 1] cells after the alphas; 35 epochs in all" in said


def test_a_dry_run_finds_what_a_run_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    small = ["autoreid.channels", "4", "autoreid.layers", "[1, 1, 1, 1]"]
    options = ["--config-file", "autoreid_train.yaml", *small, "--dry-run"]
    for words, found in (
        (["data.sources", "[market1501]", "data.targets", "[market1501]"], "market1501"),
        (["recipe.amp", "float16"], "float16"),
        (["model.load_weights", "absent.pth"], "absent.pth"),
        (["data.save_dir", "file/log"], "cannot write into data.save_dir file/log"),
    ):
        with pytest.raises(UserError, match=found):
            execute("train", [*options, *words])
    torch.save(AutoReIDNetwork(3, channels=4, layers=(1, 1, 1, 1)).state_dict(), "weights.pth")
    assert execute("train", [*options, "model.load_weights", "weights.pth"]) == 0
    with pytest.raises(UserError, match=r"weights.pth belongs to another network"):
        execute("train", [*options, "model.load_weights", "weights.pth", "autoreid.channels", "8"])


def test_a_path_and_its_command_are_the_same():
    for name in COMMANDS:
        done = completed(f"{name}.py", ["--help"])
        assert done.returncode == 0
        assert COMMANDS[name].summary.split(",")[0] in " ".join(done.stdout.split())


def test_every_folder_of_the_package_is_installed():
    described = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package = ROOT / "torchreid_autoreid"
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in package.rglob("*.py")}
    assert set(described["tool"]["setuptools"]["packages"]) == folders | {"torchreid_autoreid.configs"}
    assert described["project"]["scripts"] == {"autoreid": "torchreid_autoreid.commands:main"}
