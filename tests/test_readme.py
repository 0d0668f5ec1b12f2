"""The READMEs: commands are understood as they stand, Python blocks use what there is, links lead somewhere."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

import torchreid_autoreid
from torchreid_autoreid.commands.options import COMMANDS, parse

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", ROOT / "projects" / "benchmarks" / "README.md"]
TEXT = "".join(file.read_text(encoding="utf-8") for file in FILES)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^| )(?:autoreid|-m torchreid_autoreid) (\w+)( .*)?$", line.split(" && ")[-1])
            if found and found[1] in COMMANDS and "…" not in line:
                yield pytest.param(found[1], shlex.split(found[2] or "", comments=True), id=line.strip()[:80])


FOUND = list(commands())


def test_there_are_commands():
    assert len(FOUND) > 10


@pytest.mark.parametrize(("name", "words"), FOUND)
def test_a_command_of_the_readme_is_understood(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no run has left a checkpoint
    if "--resume" in words:
        words[words.index("--resume") + 1] = "auto"
        words += ["--config-file", f"autoreid_{name}.yaml"]  # which a checkpoint brings along
    parse(name, words)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0][:60])
def test_a_block_of_python_uses_what_there_is(code):
    aliases = {"torchreid_autoreid": "torchreid_autoreid"}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
    for node in ast.walk(ast.parse(code)):
        owner = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
        if aliases.get(owner) == "torchreid_autoreid":
            assert node.attr in torchreid_autoreid.__all__


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_and_named_files_lead_somewhere(file):
    text = file.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.strip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line[:1] == "#"
    }
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert all(link[1:] in headings if link[0] == "#" else (file.parent / link).exists() for link in links)
    named = re.findall(r"`((?:projects|configs|torchreid_autoreid|tests)/[\w/.]+)`", text)
    assert links
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
