"""What the strategies find: each with the same time to search, its network trained and tested in the same way.

    python projects/benchmarks/accuracy.py --root DIR --output log/accuracy
    python projects/benchmarks/accuracy.py --root DIR --output log/accuracy --contestant halving --contestant random
    python projects/benchmarks/accuracy.py --output log/accuracy --table

Market-1501, or a subset of it, is expected in DIR/market1501/Market-1501-v15.09.15. The contestants are the strategies,
`darts` on small images, `darts` as published (the loss of the alphas on raw features, a rate and a memory that do not
fit the length of the search, no warm-up), what its alphas propose in a selection by halving, and the first genotype
that a seed draws. Each of them

1. is timed for a few epochs, several contestants at once as later in the searches, and gets as many epochs as fit into
   `--seconds`; those that train candidates have a fixed number of about that length, those of whole trainings take
   what they take;
2. searches with every seed (search.py; the held-out half is looked at after the last epoch only, by those that train
   candidates after each of them);
3. has each network that it finds trained on the whole training set for `--train-epochs`, `--trainings` times with other
   seeds, and tested (train.py).

A network is as wide and as deep as its search network. Networks that nobody searched (`--network`, with `--seeds`
trainings each) are trained by the same recipe, but for the optimiser and rate that suit them. `OUTPUT/results.jsonl`
gets a line when a network has been tested, and the same command again goes on where it was stopped. `--table` prints
means and standard deviations over the seeds, and differences between contestants of the same seed: their mean with its
95 % interval (Student's t), and the p-value of Wilcoxon's signed-rank test, by Holm's method over all pairs shown.
Time is that of the processor with start-up and evaluation, memory the highest resident size of the search.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
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

import torch  # noqa: E402
import torchreid  # noqa: E402
from given import number, read, rows_of, whole  # noqa: E402  beside this file
from signals import SMALL_IMAGES  # noqa: E402  beside this file

from torchreid_autoreid.commands.console import run  # noqa: E402
from torchreid_autoreid.deploy.fusion import fuse  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402
from torchreid_autoreid.genotype import Genotype  # noqa: E402
from torchreid_autoreid.search.cost import count_macs, count_parameters  # noqa: E402
from torchreid_autoreid.search.halving import blind_draws  # noqa: E402
from torchreid_autoreid.space.networks import AutoReIDNetwork  # noqa: E402

#: a rung has a third of the candidates of the one before, each trained three times as long
RUNGS = {"search.rung_candidates": [9, 3], "search.rung_epochs": [3, 9]}
PUBLISHED = {
    "search.alpha_loss": "published", "search.alpha_lr": 0.02, "search.alpha_betas": [0.5, 0.999],
    "search.warmup_epochs": 0,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "published cells": {"model.name": "autoreid", "autoreid.channels": 16, "autoreid.layers": [1, 1, 1, 1]},
    # each by what it does best by, of SGD at 0.1 (the recipe) and at 0.03, and Adam at 0.002
    **{name: {"model.name": name, "train.optim": "adam", "train.lr": 0.002} for name in ("resnet18", "osnet_x1_0")},
    **{name: {"model.name": name, "train.lr": 0.03} for name in ("osnet_x0_25", "mobilenetv2_x1_0")},
}
#: of a training to the end
WHOLE_EPOCHS = 25


def whole_trainings(candidates: int) -> dict[str, int]:
    """So many, one after the other."""
    return {"search.candidate_epochs": WHOLE_EPOCHS, "train.max_epoch": candidates * WHOLE_EPOCHS}


#: the answer is what the alphas prefer
BY_STRENGTH = {"search.selection": "strength"}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "darts": {**BY_STRENGTH, "search.strategy": "darts"},
    # of the search alone, which has some three times the epochs then
    "darts, small images": {**BY_STRENGTH, "search.strategy": "darts", **SMALL_IMAGES},
    "darts, second order": {**BY_STRENGTH, "search.strategy": "darts", "search.order": 2},
    "gdas": {**BY_STRENGTH, "search.strategy": "gdas"},
    "pc_darts": {**BY_STRENGTH, "search.strategy": "pc_darts"},
    "drnas": {**BY_STRENGTH, "search.strategy": "drnas"},
    "darts, as published": {**BY_STRENGTH, "search.strategy": "darts", **PUBLISHED},
    "darts, selection halving": {"search.strategy": "darts", "search.selection": "halving", **RUNGS},
    "halving": {
        "search.strategy": "halving",
        "train.max_epoch": 72,
        "search.rung_candidates": [16, 4],
        "search.rung_epochs": [3, 9],
    },
    "evolution": {
        "search.strategy": "evolution",
        "search.candidate_epochs": 1,
        "search.evolution_candidates": 40,
        "search.population": 10,
        "search.tournament": 5,
        "search.rung_candidates": [6, 2],
        "search.rung_epochs": [3, 9],
        "train.max_epoch": 70,
    },
    "random": {"search.strategy": "random", "search.candidate_epochs": 2, "train.max_epoch": 72},
    "one random genotype": {"search.strategy": "random", "search.candidate_epochs": 1, "train.max_epoch": 1},
    # whole trainings, whatever time they take: of seven candidates, of twelve after alphas (on small images, as "darts,
    # small images"), of twenty
    "random, whole trainings": {"search.strategy": "random", **whole_trainings(7)},
    "darts, selection by whole trainings": {
        "search.strategy": "darts",
        "search.split": "identity",
        "search.selection": "halving",
        "search.rung_candidates": [12],
        "search.rung_epochs": [WHOLE_EPOCHS],
        "train.max_epoch": 26,
        **SMALL_IMAGES,
    },
    "predictor": {"search.strategy": "predictor", "search.predictor_draws": 10, **whole_trainings(20)},
    "darts, no part_aware": {**BY_STRENGTH, "search.strategy": "darts", "search.space": "standard"},
}
IMAGES = {"data.height": 128, "data.width": 64, "train.batch_size": 32, "test.eval_freq": -1}
#: of a search and of the network that it finds
SHARED = IMAGES | {"autoreid.channels": 16, "autoreid.layers": [1, 1, 1, 1]}


def execute(
    script: str, options: argparse.Namespace, folder: Path, settings: dict[str, Any], *more: str
) -> dict[str, float]:
    """Runs a script to its end; returns the processor's seconds and the highest memory in MB."""
    command = [sys.executable, str(ROOT / f"projects/autoreid/{script}.py")]
    command += ["--config-file", str(ROOT / f"configs/autoreid_{script}.yaml"), "--root", str(options.root)]
    command += ["-s", "market1501", *more, "data.save_dir", str(folder), "train.print_freq", "1000"]
    command += [str(item) for pair in settings.items() for item in pair]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.txt", "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{script}.py ended with {process.returncode}; {folder}.txt says why")
    return {"seconds": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss / 1024}


def selects(name: str) -> bool:
    """Whether a selection by halving follows the alphas."""
    return CONTESTANTS[name].get("search.selection") == "halving"


def folder_name(contestant: str) -> str:
    return contestant.replace(", ", "-").replace(" ", "_")


def calibrate(name: str, options: argparse.Namespace) -> int:
    """How many epochs fit into the time: from the seconds of the second one."""
    if "train.max_epoch" in CONTESTANTS[name]:
        return int(CONTESTANTS[name]["train.max_epoch"])
    folder = options.output / "calibration" / folder_name(name)
    known = folder.with_suffix(".json")
    if not known.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a timing that was stopped
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            every_step_alike = {"train.max_epoch": 3, "search.warmup_epochs": 0}  # the alphas move from the first on
            own = {key: value for key, value in CONTESTANTS[name].items() if key not in RUNGS}
            own |= BY_STRENGTH if selects(name) else {}  # only that of the alphas
            running = pool.submit(execute, "search", options, folder, SHARED | own | every_step_alike)
            ends: list[float] = []  # when an epoch's line appeared
            history = folder / "history.jsonl"
            while not running.done():
                written = history.read_text().count("\n") if history.exists() else 0
                ends += [time.monotonic()] * (written - len(ends))
                time.sleep(0.02)
            running.result()
        known.write_text(json.dumps({"seconds": ends[1] - ends[0]}))
    # A selection by halving takes about as long as the alphas before it.
    share = 0.5 if selects(name) else 1.0
    return max(1, int(share * options.seconds / read(known)["seconds"]))


def compete(name: str, seed: int, epochs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Searches, trains what was found, and tests it."""
    folder = options.output / f"{folder_name(name)}-{seed}"
    used = execute(
        "search",
        options,
        folder / "search",
        SHARED | CONTESTANTS[name] | {"train.seed": seed, "train.max_epoch": epochs},
    )
    found = folder / "search" / "genotype.json"
    tested = [
        train(SHARED, seed + 1000 * number, folder / f"train-{number}", options, "--genotype", str(found))
        for number in range(options.trainings)
    ]
    genotype = Genotype.load(found)
    edges = [operation for cell in genotype.cells for block in cell for operation, _ in block]
    return {
        "contestant": name, "seed": seed, "epochs": epochs, **used,
        "mAP": statistics.fmean(result["mAP"] for result in tested),
        "rank1": statistics.fmean(result["rank1"] for result in tested),
        "trainings": [result["mAP"] for result in tested], "skips": genotype.count("skip_connect"),
        "part_aware": edges.count("part_aware") / len(edges), "genotype": genotype.to_dict(),
    }  # fmt: skip


def train(
    settings: dict[str, Any], seed: int, folder: Path, options: argparse.Namespace, *more: str
) -> dict[str, float]:
    """The figures of a network on the test set."""
    own = settings | {"train.seed": seed, "train.max_epoch": options.train_epochs}
    execute("train", options, folder, own, *more)
    (result,) = read(folder / "results.json").values()
    return {key: float(result[key]) for key in ("mAP", "rank1")}


def train_network(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A network that nobody searched."""
    folder = options.output / f"{name.replace(' ', '_')}-{seed}"
    return {"network": name, "seed": seed, **train(IMAGES | NETWORKS[name], seed, folder, options)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each contestant, then for each pair, then for each network."""
    lines = [
        "| contestant | seeds | epochs | search, CPU s | MB | skips, normal / reduce | part-aware | rank-1 | mAP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found: dict[str, dict[int, float]] = {}
    for name in CONTESTANTS:
        own = [row for row in rows if row.get("contestant") == name]
        if not own:
            continue
        found[name] = {row["seed"]: 100 * row["mAP"] for row in own}
        skips = " / ".join(f"{statistics.mean(row['skips'][kind] for row in own):.1f}" for kind in ("normal", "reduce"))
        part_aware, rank1, mean_ap = (spread([100 * row[key] for row in own]) for key in ("part_aware", "rank1", "mAP"))
        lines.append(
            f"| {name} | {len(own)} | {own[0]['epochs']} | {statistics.mean(row['seconds'] for row in own):.0f} "
            f"| {max(row['memory'] for row in own):.0f} | {skips} | {part_aware} % | {rank1} % | {mean_ap} % |"
        )
    lines = lines if found else []
    networks = [(name, [row for row in rows if row.get("network") == name]) for name in NETWORKS]
    if any(own for _, own in networks):
        lines += ["", "| network | seeds | parameters | MACs | images/s, one thread | rank-1 | mAP |"]
        lines.append("|---|---|---|---|---|---|---|")
    for name, own in networks:
        if own:
            rank1, mean_ap = (spread([100 * row[key] for row in own]) for key in ("rank1", "mAP"))
            lines.append(f"| {name} | {len(own)} | {' | '.join(costs(name))} | {rank1} % | {mean_ap} % |")
    lines += pairs(found)
    return "\n".join(lines)


def costs(name: str) -> tuple[str, str, str]:
    """Parameters and MACs without the classifier, and images of the benchmark's size in a second."""
    own, size = NETWORKS[name], (IMAGES["data.height"], IMAGES["data.width"])
    shape = {key.rpartition(".")[2]: value for key, value in own.items() if key.startswith("autoreid.")}
    name = own["model.name"]
    model = AutoReIDNetwork(1, **shape) if shape else torchreid.models.build_model(name, 1, pretrained=False)
    parameters, macs = count_parameters(model), count_macs(model, (3, *size))
    torch.set_num_threads(1)
    fast, images = fuse(model.eval()), torch.randn(32, 3, *size)
    taken = []
    with torch.no_grad():
        for _ in range(10):
            began = time.perf_counter()
            fast(images)
            taken.append(time.perf_counter() - began)
    return f"{parameters / 1e6:.2f} M", f"{macs / 1e6:.0f} M", f"{32 / min(taken):.0f}"


def pairs(found: dict[str, dict[int, float]]) -> list[str]:
    """Differences of the mAP between contestants, by seed; those with fewer than three seeds in common are left out."""
    from scipy.stats import wilcoxon

    compared = []
    for one, other in itertools.combinations(found, 2):
        seeds = sorted(found[one].keys() & found[other].keys())
        differences = [found[one][seed] - found[other][seed] for seed in seeds]
        if len(seeds) >= 3 and any(differences):
            mean, half = blind_draws(differences)
            compared.append((one, other, len(seeds), mean, half, float(wilcoxon(differences).pvalue)))
    adjusted = holm([p for *_, p in compared])
    lines = ["", "| difference of mAP | seeds | points, 95 % interval | p (Wilcoxon, Holm) |", "|---|---|---|---|"]
    for (one, other, seeds, mean, half, _), p in zip(compared, adjusted, strict=True):
        lines.append(f"| {one} − {other} | {seeds} | {mean:+.1f} ± {half:.1f} | {p:.3f} |")
    return lines if compared else []


def holm(values: list[float]) -> list[float]:
    """p-values by Holm's step-down method (1979): the family-wise error is at most that of one test.

    >>> holm([0.04, 0.01, 0.5])
    [0.08, 0.03, 0.5]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, least = [0.0] * len(values), 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(values) - place) * values[i]))
        found[i] = least
    return found


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, metavar="DIR", help="of the dataset")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="results, and all log folders")
    parser.add_argument("--contestant", action="append", choices=tuple(CONTESTANTS), help="may be repeated (all)")
    parser.add_argument(
        "--network", action="append", choices=tuple(NETWORKS), default=[], help="may be repeated (none)"
    )
    parser.add_argument("--seeds", type=whole(1), default=8, help="of each contestant: 1, 2, …")
    parser.add_argument("--trainings", type=whole(1), default=2, help="of each network that a search has found")
    parser.add_argument("--table", action="store_true", help="print what has been measured so far, and end")
    parser.add_argument("--seconds", type=number(), default=210.0, help="of a search")
    parser.add_argument("--train-epochs", type=whole(6), default=25, help="above the 5 of the warm-up")
    parser.add_argument("--jobs", type=whole(1), default=2, help="runs at once")
    parser.add_argument("--threads", type=whole(1), default=1, help="of a run")
    return parser.parse_args()


def results_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    results = options.output / "results.jsonl"
    return rows_of([results]) if results.exists() else []


def compare(options: argparse.Namespace) -> None:
    names = [name for name in CONTESTANTS if name in (options.contestant or ([] if options.network else CONTESTANTS))]
    options.output.mkdir(parents=True, exist_ok=True)
    done = {(row.get("contestant") or row["network"], row["seed"]) for row in results_of(options)}
    seeds = range(1, options.seeds + 1)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        epochs = dict(zip(names, pool.map(lambda name: calibrate(name, options), names), strict=True))
        print(f"{options.seconds:.0f} s are enough for these epochs: {epochs}", flush=True)
        running = [
            pool.submit(compete, name, seed, epochs[name], options)
            for seed in seeds
            for name in names
            if (name, seed) not in done
        ]
        running += [
            pool.submit(train_network, name, seed, options)
            for seed in seeds
            for name in options.network
            if (name, seed) not in done
        ]
        try:
            for number, future in enumerate(concurrent.futures.as_completed(running), start=1):
                row = future.result()
                with open(options.output / "results.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                who = f"{row.get('contestant') or row['network']}, seed {row['seed']}"
                print(f"{number} of {len(running)}: {who}: mAP {row['mAP']:.1%}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # or all that is waiting would still run
            raise


def main() -> None:
    options = parse()
    if not options.table:
        if options.root is None:
            raise UserError("give --root DIR, the folder that holds market1501/Market-1501-v15.09.15")
        compare(options)
    rows = results_of(options)
    if not rows:
        raise UserError(f"{options.output} holds no results yet; measure first: --root DIR --output {options.output}")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run(main))
