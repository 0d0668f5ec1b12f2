"""The truth set: random genotypes of the search space, each trained to its end by configs/autoreid_train.yaml.

    python projects/benchmarks/truth.py --root DIR --output log/truth
    python projects/benchmarks/truth.py --output log/truth --collect torchreid_autoreid/search/truth.json
    python projects/benchmarks/truth.py --describe torchreid_autoreid/search/truth.json

Market-1501, or a subset of it, is expected in DIR/market1501/Market-1501-v15.09.15. The first command trains and tests
each genotype with each seed at four cells (1, 1, 1, 1), then the first `--deep` of them at eight (2, 2, 2, 2). OUTPUT
has a line for each network that was tested, and the same command goes on where it was stopped. `--share 1/2` and
`--share 2/2` are for two processes side by side: each takes every second network. `--collect` joins what all shares
have written into one file, `--describe` prints what it says: the spread between genotypes, the noise between seeds, and
what good cells have in common. Figures on a subset are not comparable to published ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torchreid  # noqa: E402
from given import read, whole  # noqa: E402  beside this file
from given import rows_of as rows_of_files  # noqa: E402

from torchreid_autoreid.commands.console import run  # noqa: E402
from torchreid_autoreid.commands.train import build_engine  # noqa: E402
from torchreid_autoreid.config.build import engine_run_kwargs, traindata_kwargs  # noqa: E402
from torchreid_autoreid.config.check import check_train_config  # noqa: E402
from torchreid_autoreid.config.read import load_config  # noqa: E402
from torchreid_autoreid.data import TrainDataManager  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402
from torchreid_autoreid.files import write_atomically  # noqa: E402
from torchreid_autoreid.genotype import Genotype, operation_names  # noqa: E402
from torchreid_autoreid.parallel.launch import OneProcess  # noqa: E402
from torchreid_autoreid.search.cost import count_macs, count_parameters  # noqa: E402
from torchreid_autoreid.search.selection import draw_genotype  # noqa: E402
from torchreid_autoreid.search.truth import TruthSet, summary  # noqa: E402
from torchreid_autoreid.spec import Description  # noqa: E402

RECIPE = ROOT / "configs" / "autoreid_train.yaml"
SHALLOW, DEEP = (1, 1, 1, 1), (2, 2, 2, 2)


def genotype_of(index: int) -> Genotype:
    """The same for ever, whoever draws it."""
    return draw_genotype(operation_names("reid"), 4, f"truth {index}", name=f"truth-{index}")


def jobs(options: argparse.Namespace) -> list[tuple[int, int, tuple[int, ...]]]:
    """``(index, seed, layers)``, in the order in which they are trained."""
    seeds = range(1, options.seeds + 1)
    shallow = [(index, seed, SHALLOW) for seed in seeds for index in range(options.genotypes)]
    return shallow + [(index, seed, DEEP) for seed in seeds for index in range(options.deep)]


def configuration(options: argparse.Namespace, seed: int, layers: tuple[int, ...]) -> Any:
    settings: dict[str, Any] = {
        "data.height": 128, "data.width": 64, "autoreid.channels": 16, "autoreid.layers": list(layers),
        "train.max_epoch": options.epochs, "train.seed": seed, "train.print_freq": 10**6, "recipe.keep_last": 0,
    }  # fmt: skip
    words = [str(word) for pair in settings.items() for word in pair]
    return load_config(str(RECIPE), words, root=str(options.root), sources=["market1501"])


def train(index: int, seed: int, layers: tuple[int, ...], options: argparse.Namespace) -> dict[str, Any]:
    about = {"index": index, "seed": seed, "layers": list(layers)}
    return about | train_genotype(genotype_of(index), seed, layers, options)


def train_genotype(
    genotype: Genotype, seed: int, layers: tuple[int, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """Figures of its network after training, and what it costs."""
    cfg = configuration(options, seed, layers)
    check_train_config(cfg)
    began = time.process_time()
    torchreid.utils.set_random_seed(seed)
    description = dataclasses.replace(Description.of_config(cfg), genotype=genotype)
    datamanager = TrainDataManager(**traindata_kwargs(cfg), share=(0, 1))
    engine = build_engine(cfg, datamanager, description, torch.device("cpu"), OneProcess())
    records: list[Any] = []
    engine.on_epoch = records.append
    wanted = engine_run_kwargs(cfg)
    with tempfile.TemporaryDirectory() as folder:
        names = ("print_freq", "eval_freq", "dist_metric", "normalize_feature")
        engine.run(save_dir=folder, max_epoch=options.epochs, **{name: wanted[name] for name in names})
    found, network = records[-1].retrieval, engine.model
    return {
        "genotype": genotype.to_dict(),
        **{name: round(float(found[name]), 6) for name in ("mAP", "rank1", "mINP")},
        "params": count_parameters(network), "macs": count_macs(network, (3, cfg.data.height, cfg.data.width)),
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def header(options: argparse.Namespace) -> dict[str, Any]:
    """What all figures of a truth set have in common."""
    cfg = configuration(options, 1, SHALLOW)
    keys = ("data", "loss", "train", "recipe", "sampler")
    recipe = {key: json.loads(json.dumps(cfg[key])) for key in keys}
    for key in ("root", "save_dir", "workers", "split_id"):
        del recipe["data"][key]
    return {
        "recipe": recipe, "channels": 16,
        "versions": {
            "torch": torch.__version__, "torchreid": torchreid.__version__, "python": platform.python_version(),
        },
    }  # fmt: skip


def train_all(options: argparse.Namespace) -> None:
    share, shares = options.share
    options.output.mkdir(parents=True, exist_ok=True)
    about, own = options.output / "about.json", options.output / f"share-{share}-of-{shares}.jsonl"
    written = json.dumps(header(options), indent=1)
    if about.exists() and read(about) != json.loads(written):
        raise UserError(f"{about} is of another recipe or version; give another --output, or the same recipe")
    write_atomically(about, lambda place: Path(place).write_text(written, encoding="utf-8"))  # the shares start at once
    done = {(row["index"], row["seed"], tuple(row["layers"])) for row in rows_of(options.output)}
    waiting = [job for job in jobs(options)[share - 1 :: shares] if job not in done]
    for number, job in enumerate(waiting, start=1):
        row = train(*job, options)
        with open(own, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        index, seed, layers = job
        print(
            f"{number} of {len(waiting)}: genotype {index}, seed {seed}, {sum(layers)} cells: mAP {row['mAP']:.1%}, "
            f"{row['seconds']:.0f} s; {row['seconds'] * (len(waiting) - number) / 60:.0f} min left",
            flush=True,
        )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return rows_of_files(sorted(folder.glob("share-*-of-*.jsonl")))


def collect(options: argparse.Namespace) -> None:
    rows = sorted(rows_of(options.output), key=lambda row: (sum(row["layers"]), row["seed"], row["index"]))
    if not rows:
        raise UserError(f"{options.output} holds no results yet; train first: --root DIR --output {options.output}")
    about = read(options.output / "about.json")
    signals = TruthSet.load(options.collect).signals if options.collect.exists() else {}  # of the same genotypes
    TruthSet.of_rows(about, rows, signals).save(options.collect)
    print(f"{len(rows)} networks in {options.collect}")


def share(text: str) -> tuple[int, int]:
    one, _, all_of_them = text.partition("/")
    if not (one.isdigit() and all_of_them.isdigit() and 1 <= int(one) <= int(all_of_them)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give I/N, such as 1/2")
    return int(one), int(all_of_them)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, metavar="DIR", help="of the dataset")
    parser.add_argument("--output", type=Path, default=Path("log/truth"), metavar="DIR", help="default: log/truth")
    parser.add_argument("--genotypes", type=whole(1), default=60)
    parser.add_argument("--seeds", type=whole(1), default=2, help="of each genotype: 1, 2, …")
    parser.add_argument("--deep", type=whole(0), default=30, help="genotypes that are trained at eight cells as well")
    parser.add_argument("--epochs", type=whole(1), default=25)
    parser.add_argument("--share", type=share, default=(1, 1), metavar="I/N", help="default: 1/1, all networks")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="write what has been trained so far, and end")
    parser.add_argument("--describe", type=Path, metavar="FILE", help="print what a truth set says, and end")
    options = parser.parse_args()
    if options.describe:
        print(summary(TruthSet.load(options.describe)))
    elif options.collect:
        collect(options)
    elif options.root is None:
        raise UserError("give --root DIR, the folder that holds market1501/Market-1501-v15.09.15")
    else:
        torch.set_num_threads(1)
        train_all(options)


if __name__ == "__main__":
    sys.exit(run(main))
