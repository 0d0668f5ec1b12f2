"""torchrun's agent, whose processes are forked from one that has PyTorch loaded: ``launched.py FOLDER ARGUMENT …``.

It restarts them once. Each writes its process id to ``FOLDER/RANK``.
"""

import os
import runpy
import sys
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

SEARCH = Path(__file__).resolve().parents[2] / "projects" / "autoreid" / "search.py"


def search(folder, *arguments):
    """A process of the run."""
    (Path(folder) / os.environ["RANK"]).write_text(str(os.getpid()))
    sys.argv = [str(SEARCH), *arguments]
    runpy.run_path(str(SEARCH), run_name="__main__")


if __name__ == "__main__":
    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="test", start_method="fork", max_restarts=1,
        monitor_interval=0.1,
    )  # fmt: skip
    elastic_launch(config, search)(*sys.argv[1:])
