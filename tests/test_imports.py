"""The direction of the imports, and what library code must never contain, read from the source with ``ast``."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "torchreid_autoreid"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in FILES.items()}

STANDARD = frozenset(sys.stdlib_module_names)
#: parts that may import torchreid; all others are for any framework
TORCHREID = {"data", "search.losses", "engine", "plugin", "commands"}

#: part of the package -> parts it may import. What is not here must be added on purpose.
MAY_IMPORT = {
    # when they are used
    "__init__": {"deploy", "errors", "evaluation", "genotype", "plugin", "report", "search", "space", "version"},
    "__main__": {"commands"},
    "version": set(),
    "errors": set(),
    "files": {"errors"},
    "keys": set(),
    "limits": {"errors", "keys"},
    "numbers": set(),
    "genotype": {"errors", "files"},
    "records": {"errors", "genotype", "keys"},
    "queries": {"errors", "files"},
    "loopback": {"errors"},
    "provenance": {"errors", "files", "version"},
    "config": {"keys", "limits", "errors", "files", "search.halving", "search.plans"},
    "parallel": {"errors"},
    "checkpoint": {"files", "genotype", "errors"},
    "space": {"limits", "parallel", "genotype", "errors"},
    "search.losses": {"limits", "errors"},
    "search.halving": {"errors"},
    "search.plans": {"limits", "errors", "genotype", "search.halving"},
    "search": {"limits", "space", "files", "genotype", "errors"},
    "evaluation": {"parallel", "errors", "files"},
    "gallery": {"evaluation", "errors", "files", "loopback"},
    "data": {"errors"},
    "report": {
        "numbers",
        "config",
        "evaluation",
        "files",
        "genotype",
        "keys",
        "provenance",
        "queries",
        "records",
        "search.halving",
        "errors",
        "version",
    },
    "plugin": {"space", "genotype", "checkpoint", "errors"},
    "spec": {"limits", "checkpoint", "config", "errors", "genotype", "plugin", "space"},
    "deploy": {"checkpoint", "data", "errors", "files", "genotype", "limits", "space", "spec", "version"},
    "engine": {
        "limits",
        "checkpoint",
        "data",
        "deploy",
        "errors",
        "evaluation",
        "files",
        "genotype",
        "parallel",
        "queries",
        "records",
        "report",
        "search",
        "space",
    },
    "commands": {
        "keys",
        "numbers",
        "limits",
        "loopback",
        "checkpoint",
        "config",
        "data",
        "deploy",
        "engine",
        "errors",
        "evaluation",
        "files",
        "gallery",
        "genotype",
        "parallel",
        "provenance",
        "queries",
        "records",
        "report",
        "search",
        "space",
        "spec",
        "version",
    },
}

#: part of the package -> libraries it may import besides the standard one.
LIBRARIES = {
    "evaluation": {"numpy", "scipy", "faiss", "torch", "sklearn"},
    "gallery": {"numpy", "faiss", "torch"},
    "config": {"yacs", "yaml"},
    "genotype": set(),
    "errors": set(),
    "files": {"errors"},
    "keys": set(),
    "limits": {"errors", "keys"},
}


def part_of(name: str) -> str:
    """``engine/search.py`` and ``engine/__init__.py`` belong to engine; a file with an entry of its own is a part."""
    return part_of_module(name.removesuffix(".py").replace("/", "."))


def part_of_module(module: str) -> str:
    return module if module in MAY_IMPORT else module.split(".")[0]


def allowed(part: str) -> set[str]:
    """A room that may import another may import the files of it that are parts of their own."""
    return {name for name in MAY_IMPORT if name in MAY_IMPORT[part] or name.split(".")[0] in MAY_IMPORT[part] | {part}}


def imports(name: str) -> Iterator[tuple[str, ast.stmt]]:
    """Absolute names of what a file imports; relative imports become ``torchreid_autoreid.…``."""
    package = ["torchreid_autoreid", *name.split("/")[:-1]]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` imports x; `from .x import y` imports x.
            yield from ((f"{module}.{alias.name}" if not node.module else module, node) for alias in node.names)


def violations(name: str) -> list[str]:
    part, found = part_of(name), []
    for module, node in imports(name):
        first, *rest = module.split(".")
        where = f"{name}:{node.lineno} imports {module}"
        if first == "torchreid_autoreid":
            target = part_of_module(".".join(rest)) if rest else "__init__"
            if target != part and target not in allowed(part):
                found.append(where)
        elif first == "torchreid":
            if part not in TORCHREID:
                found.append(where)
            if rest or isinstance(node, ast.ImportFrom):
                found.append(f"{where}; torchreid is reached by attribute")
        elif first not in STANDARD and first not in LIBRARIES.get(part, {first}):
            found.append(where)
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports_point_one_way(name):
    assert not violations(name)


def test_the_allowed_directions_have_no_cycle():
    done: set[str] = set()
    while left := {part for part in MAY_IMPORT if part not in done}:
        ready = {part for part in left if allowed(part) - {part} <= done}
        assert ready, f"a cycle among {sorted(left)}"
        done |= ready


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("space/operations.py", "from ..engine import search"),
        ("space/operations.py", "import torchreid"),
        ("space/operations.py", "from torchreid_autoreid.search import cost"),
        ("data/manager.py", "import torchreid.data"),
        ("data/manager.py", "from torchreid import data"),
        ("data/manager.py", "from ..space.networks import AutoReIDNetwork"),
        ("evaluation/index.py", "import matplotlib"),
        ("evaluation/index.py", "def late():\n    from ..engine import search"),
        ("config/check.py", "from ..space.strategies import STRATEGIES"),
    ],
)
def test_a_wrong_import_is_found(name, source, monkeypatch):
    monkeypatch.setitem(TREES, name, ast.parse(source))
    assert violations(name)


def forbidden(tree: ast.AST) -> Iterator[str]:
    """Calls that run what a file says, move tensors to a device of their own choice, or print."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"{node.lineno}: {module}" for module in modules if module in {"pickle", "dill", "marshal"})
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{node.lineno}: bare except"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            last = called.split(".")[-1]
            if called in {"eval", "exec", "compile", "__import__", "yaml.unsafe_load", "yaml.full_load"}:
                yield f"{node.lineno}: {called}()"
            if last == "cuda":
                yield f"{node.lineno}: {called}()"
            if called == "torch.load" and given.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load without weights_only=True"
            if last == "load" and called.split(".")[0] in {"np", "numpy"} and given.get("allow_pickle") != "False":
                yield f"{node.lineno}: np.load without allow_pickle=False"


@pytest.mark.parametrize("name", FILES)
def test_library_code_runs_no_data_and_picks_no_device(name):
    assert not list(forbidden(TREES[name]))


# torchreid's engines print their figures, and so does the mixin in their place where nobody listens to the log.
PRINTS = ("commands", "engine/evaluation.py", "engine/run_folder.py")


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(PRINTS)])
def test_library_code_never_prints(name):
    calls = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    assert not [node.lineno for node in calls if ast.unparse(node.func) == "print"]


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import pickle",
        "from pickle import loads",
        "x.cuda()",
        "torch.load('f')",
        "torch.load('f', weights_only=False)",
        "np.load('f')",
        "try:\n    pass\nexcept:\n    pass",
    ],
)
def test_forbidden_code_is_found(source):
    assert list(forbidden(ast.parse(source)))
