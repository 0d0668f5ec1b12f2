"""How much faster several workers share the candidates of a search (search.study) than one does them alone.

    python projects/benchmarks/study.py
    python projects/benchmarks/study.py --workers 4 --trials 24

Each worker is the same command on one thread, on the pedestrians that the plugin draws itself. Several workers share as
many times the candidates that one has alone, so that all would take the same time if sharing cost nothing: the
throughput is the number of workers times the time of one by the time of all. Nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from given import whole  # noqa: E402  beside this file

from torchreid_autoreid.commands.console import run  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402


def seconds(workers: int, trials: int, folder: Path) -> float:
    """From the start of the workers to the end of the last one."""
    settings = {
        "search.strategy": "random", "search.candidate_epochs": 1, "train.max_epoch": workers * trials,
        "search.study": folder / "study.log", "data.save_dir": folder / "log", "train.print_freq": 1000,
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "projects/autoreid/search.py"), "--config-file", "autoreid_search.yaml"]
    command += ["--root", str(folder.parent), *(str(item) for pair in settings.items() for item in pair)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder.mkdir()
    began, running = time.perf_counter(), []
    for number in range(workers):
        with open(folder / f"{number}.txt", "w", encoding="utf-8") as output:
            running.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment))
    for number, process in enumerate(running):
        if process.wait():
            raise UserError(f"a worker has failed: {(folder / f'{number}.txt').read_text().splitlines()[-1]}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=whole(1), default=2)
    parser.add_argument("--trials", type=whole(1), default=16, help="candidates for each worker; default: 16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        seconds(1, 1, place / "warm")  # draws the dataset
        alone, together = (seconds(n, options.trials, place / str(n)) for n in (1, options.workers))
    gained = options.workers * alone / together
    print(f"1 worker, {options.trials} candidates: {alone:.1f} s")
    print(f"{options.workers} workers, {options.workers * options.trials} candidates: {together:.1f} s")
    print(f"throughput {gained:.2f} times that of one worker, {gained / options.workers:.2f} of {options.workers}")


if __name__ == "__main__":
    sys.exit(run(main))
