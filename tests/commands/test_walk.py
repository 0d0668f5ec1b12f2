"""How many files an end-to-end search imports: the way that a newcomer walks from the command to the mAP.

    python -m pytest tests/commands/test_walk.py -s

prints them. The number may fall; whoever raises it does so here, knowingly.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from drawn_images import draw_people

ROOT = Path(__file__).resolve().parents[2]
MOST_FILES = 119

WALK = """
import sys
from torchreid_autoreid.commands import execute
execute("search", sys.argv[1:])
print("walked", *sorted(name for name in sys.modules if name.split(".")[0] == "torchreid_autoreid"))
"""


@pytest.mark.slow
def test_the_way_from_the_command_to_the_figures(tmp_path):
    options = ["--config-file", "autoreid_search.yaml", "--root", draw_people(tmp_path / "images")]
    options += ["-s", "folder", "-t", "folder", "data.save_dir", tmp_path / "log"]
    tiny = ["autoreid.channels", 2, "autoreid.layers", "[1, 1, 1, 1]", "train.max_epoch", 1]
    tiny += ["search.rung_candidates", "[2]", "search.rung_epochs", "[1]"]
    tiny += ["train.batch_size", 8, "sampler.num_instances", 2, "data.workers", 0, "data.height", 64, "data.width", 32]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WALK, *map(str, [*options, *tiny])],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("walked ")]
    names = line.split()[1:]
    files = [(ROOT / name.replace(".", "/")).with_suffix(".py") for name in names]
    files = [path if path.is_file() else path.with_suffix("") / "__init__.py" for path in files]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    print(f"an end-to-end search imports {len(files)} files of the package, {lines} lines:", *names, sep="\n  ")
    assert len(files) <= MOST_FILES
