"""Architecture search for person re-identification, and retrieval evaluation at any size, as a torchreid plugin.

The models and datasets of the plugin are registered as soon as torchreid is there: at once if it has been imported
before, else when it is. The names below are imported when they are first used, so that ``import torchreid_autoreid``
and ``autoreid --help`` take no seconds.
"""

import importlib
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .deploy.model import load_model
    from .errors import UserError
    from .evaluation import Embeddings, RetrievalResult, evaluate
    from .genotype import Genotype
    from .plugin import register_model
    from .report.runs import compare, read_history
    from .search.architect import Architect
    from .search.losses import RetrievalLoss
    from .space.networks import AutoReIDNetwork, AutoReIDSearchNetwork
    from .space.operations.part_aware import PartAware
    from .version import __version__

__all__ = [
    "Architect",
    "AutoReIDNetwork",
    "AutoReIDSearchNetwork",
    "Embeddings",
    "Genotype",
    "PartAware",
    "RetrievalLoss",
    "RetrievalResult",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "load_model",
    "read_history",
    "register_model",
]

#: public name -> the module that has it
_HOMES = {
    "Architect": "search.architect",
    "AutoReIDNetwork": "space.networks",
    "AutoReIDSearchNetwork": "space.networks",
    "Embeddings": "evaluation",
    "Genotype": "genotype",
    "PartAware": "space.operations.part_aware",
    "RetrievalLoss": "search.losses",
    "RetrievalResult": "evaluation",
    "UserError": "errors",
    "__version__": "version",
    "compare": "report.runs",
    "evaluate": "evaluation",
    "load_model": "deploy.model",
    "read_history": "report.runs",
    "register_model": "plugin",
}
_ROOMS = (
    "commands",
    "config",
    "data",
    "deploy",
    "engine",
    "evaluation",
    "gallery",
    "parallel",
    "report",
    "search",
    "space",
)

# torchreid says on import that it has no compiled evaluation; the plugin brings its own.
warnings.filterwarnings("ignore", "Cython evaluation")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


def _register() -> None:
    """Imports the modules that register models and datasets with torchreid when they are imported."""
    importlib.import_module(".plugin", __name__)
    importlib.import_module(".data", __name__)


class _Registration:
    """A finder that lets torchreid be found as always, and registers the plugin once it has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torchreid":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if "torchreid" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _Registration())
