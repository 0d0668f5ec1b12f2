"""What the strategies find: each with the same time to search, its network trained and tested in the same way.

    python projects/benchmarks/accuracy.py --root DIR --output log/accuracy
    python projects/benchmarks/accuracy.py --root DIR --output log/accuracy --contestant gdas --contestant random

Market-1501, or a subset of it, is expected in DIR/market1501/Market-1501-v15.09.15. The contestants are the strategies,
the second order, `darts` as published (the loss of the alphas on raw features, a rate and a memory that do not fit the
length of the search, no warm-up), the search in the space without the part-aware operation, the alphas' proposals in a
selection by halving, and the first genotype that a seed draws. Each of them

1. is timed for a few epochs, several contestants at once as later in the searches, and gets as many epochs as fit into
   `--seconds`;
2. searches with every seed (search.py; the held-out half is looked at after the last epoch only, by `random` after each
   candidate, which it chooses by);
3. has each network that it finds trained on the whole training set for `--train-epochs` and tested (train.py).

A network is as wide and as deep as its search network. `OUTPUT/results.jsonl` gets a line when a network has been
tested, and the same command again goes on where it was stopped. The table gives means and standard deviations over the
seeds. Time is that of the processor with start-up and evaluation, memory the highest resident size of the search.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from torchreid_autoreid.commands.console import run  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402
from torchreid_autoreid.genotype import Genotype  # noqa: E402

CANDIDATE_EPOCHS = 2
#: a rung has a third of the candidates of the one before, each trained three times as long
RUNGS = {"search.rung_candidates": [9, 3, 1], "search.rung_epochs": [1, 3, 9]}
PUBLISHED = {
    "search.alpha_loss": "published", "search.alpha_lr": 0.02, "search.alpha_betas": [0.5, 0.999],
    "search.warmup_epochs": 0,
}  # fmt: skip
CONTESTANTS: dict[str, dict[str, Any]] = {
    "darts": {"search.strategy": "darts"},
    "darts, second order": {"search.strategy": "darts", "search.order": 2},
    "gdas": {"search.strategy": "gdas"},
    "pc_darts": {"search.strategy": "pc_darts"},
    "drnas": {"search.strategy": "drnas"},
    "darts, as published": {"search.strategy": "darts", **PUBLISHED},
    "darts, selection halving": {"search.strategy": "darts", "search.selection": "halving", **RUNGS},
    "halving": {"search.strategy": "halving", "train.max_epoch": 21, **RUNGS},
    "random": {"search.strategy": "random", "search.candidate_epochs": CANDIDATE_EPOCHS},
    "one random genotype": {"search.strategy": "random", "train.max_epoch": 1},
    "darts, no part_aware": {"search.strategy": "darts", "search.space": "standard"},
}
#: of both: the images and the network
SHARED = {"data.height": 128, "data.width": 64, "train.batch_size": 32, "autoreid.channels": 16, "test.eval_freq": -1}


def execute(
    script: str, options: argparse.Namespace, folder: Path, settings: dict[str, Any], *more: str
) -> dict[str, float]:
    """Runs a script to its end; returns the processor's seconds and the highest memory in MB."""
    command = [sys.executable, str(ROOT / f"projects/autoreid/{script}.py")]
    command += ["--config-file", str(ROOT / f"configs/autoreid_{script}.yaml"), "--root", str(options.root)]
    command += ["-s", "market1501", *more, "data.save_dir", str(folder), "train.print_freq", "1000"]
    command += [str(item) for pair in (SHARED | settings).items() for item in pair]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.txt", "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{script}.py ended with {process.returncode}; {folder}.txt says why")
    return {"seconds": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss / 1024}


def unit(name: str) -> int:
    """Epochs that a search can be lengthened by."""
    return int(CONTESTANTS[name].get("search.candidate_epochs", 1))


def folder_name(contestant: str) -> str:
    return contestant.replace(", ", "-").replace(" ", "_")


def calibrate(name: str, options: argparse.Namespace) -> int:
    """How many epochs fit into the time: from the seconds between two ends of a unit of epochs."""
    if "train.max_epoch" in CONTESTANTS[name]:
        return int(CONTESTANTS[name]["train.max_epoch"])
    folder = options.output / "calibration" / folder_name(name)
    known = folder.with_suffix(".json")
    if not known.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a timing that was stopped
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            every_step_alike: dict[str, Any] = {"train.max_epoch": 3 * unit(name)}
            if unit(name) == 1:  # the alphas move from the first epoch on
                every_step_alike["search.warmup_epochs"] = 0
            own = {
                key: value for key, value in CONTESTANTS[name].items() if key != "search.selection" and key not in RUNGS
            }
            running = pool.submit(execute, "search", options, folder, own | every_step_alike)
            ends: list[float] = []  # when an epoch's line appeared
            history = folder / "history.jsonl"
            while not running.done():
                written = history.read_text().count("\n") if history.exists() else 0
                ends += [time.monotonic()] * (written - len(ends))
                time.sleep(0.02)
            running.result()
        known.write_text(json.dumps({"seconds": (ends[2 * unit(name) - 1] - ends[unit(name) - 1]) / unit(name)}))
    # A selection by halving takes about as long as the alphas before it.
    share = 0.5 if "search.selection" in CONTESTANTS[name] else 1.0
    fitting = int(share * options.seconds / json.loads(known.read_text())["seconds"])
    return max(1, fitting // unit(name)) * unit(name)


def compete(name: str, seed: int, epochs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Searches, trains what was found, and tests it."""
    folder = options.output / f"{folder_name(name)}-{seed}"
    seeded = {"train.seed": seed}
    used = execute("search", options, folder / "search", CONTESTANTS[name] | seeded | {"train.max_epoch": epochs})
    found = folder / "search" / "genotype.json"
    execute(
        "train", options, folder / "train", seeded | {"train.max_epoch": options.train_epochs},
        "--genotype", str(found),
    )  # fmt: skip
    genotype = Genotype.load(found)
    (result,) = json.loads((folder / "train" / "results.json").read_text()).values()
    last = json.loads((folder / "search" / "history.jsonl").read_text().splitlines()[-1])
    edges = [operation for cell in (genotype.normal, genotype.reduce) for block in cell for operation, _ in block]
    return {
        "contestant": name, "seed": seed, "epochs": epochs, **used,
        "held_out_mAP": last["retrieval"]["mAP"] if last["retrieval"] and name != "random" else None,
        "mAP": result["mAP"], "rank1": result["rank1"], "skips": genotype.count("skip_connect"),
        "part_aware": edges.count("part_aware") / len(edges), "genotype": genotype.to_dict(),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each contestant, as Markdown."""
    lines = [
        "| contestant | epochs | search, CPU s | MB | skips normal / reduce | part-aware edges | rank-1 | mAP |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in CONTESTANTS:
        own = [row for row in rows if row["contestant"] == name]
        if not own:
            continue
        skips = " / ".join(f"{statistics.mean(row['skips'][kind] for row in own):.1f}" for kind in ("normal", "reduce"))
        part_aware, rank1, mean_ap = (spread([100 * row[key] for row in own]) for key in ("part_aware", "rank1", "mAP"))
        lines.append(
            f"| {name} | {own[0]['epochs']} | {statistics.mean(row['seconds'] for row in own):.0f} "
            f"| {max(row['memory'] for row in own):.0f} | {skips} | {part_aware} % | {rank1} % | {mean_ap} % |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="of the dataset")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="results, and all log folders")
    parser.add_argument("--contestant", action="append", choices=tuple(CONTESTANTS), help="may be repeated (all)")
    parser.add_argument("--seeds", type=int, default=3, help="of each contestant: 1, 2, …")
    parser.add_argument("--seconds", type=float, default=210.0, help="of a search")
    parser.add_argument("--train-epochs", type=int, default=25)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--threads", type=int, default=1, help="of a run")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> None:
    names = [name for name in CONTESTANTS if name in (options.contestant or CONTESTANTS)]
    results = options.output / "results.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["contestant"], row["seed"]) for row in rows}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        epochs = dict(zip(names, pool.map(lambda name: calibrate(name, options), names), strict=True))
        print(f"{options.seconds:.0f} s are enough for these epochs: {epochs}", flush=True)
        waiting = [(name, seed) for seed in range(1, options.seeds + 1) for name in names if (name, seed) not in done]
        running = [pool.submit(compete, name, seed, epochs[name], options) for name, seed in waiting]
        try:
            for number, future in enumerate(concurrent.futures.as_completed(running), start=1):
                row = future.result()
                with open(results, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                rows.append(row)
                who = f"{row['contestant']}, seed {row['seed']}"
                print(f"{number} of {len(running)}: {who}: mAP {row['mAP']:.1%}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # or all that is waiting would still run
            raise
    print(table([row for row in rows if row["contestant"] in names]))


def main() -> None:
    options = parse()
    if min(options.seeds, options.jobs, options.threads) < 1 or options.seconds <= 0:
        raise UserError("--seeds, --jobs, --threads and --seconds must be positive")
    if options.train_epochs <= 5:
        raise UserError("--train-epochs must be above 5, the epochs of the warm-up")
    compare(options)


if __name__ == "__main__":
    sys.exit(run(main))
