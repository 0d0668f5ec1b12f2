"""Which cheap signal ranks genotypes? Each is compared with the truth set, where they were trained to the end.

    python projects/benchmarks/signals.py --root DIR --output log/signals
    python projects/benchmarks/signals.py --output log/signals --collect torchreid_autoreid/search/truth.json
    python projects/benchmarks/signals.py --describe torchreid_autoreid/search/truth.json

Market-1501, or a subset of it, is expected in DIR/market1501/Market-1501-v15.09.15. The first command measures, for
every genotype of the truth set,

- `1 epoch`, `3 epochs`, `9 epochs`: one training that goes on, annealed to its end three times, as in successive
  halving; the mAP on identities that were held out of it (search.held_out), and with `, AUC` behind the name, how
  probably an image of these is nearer to one of the same than to one of another; so are the following;
- `2 epochs`, `4 epochs`: trainings of their own;
- `2 epochs, images`: the same, but a fifth of every identity's images is held out instead;
- `25 epochs`: a whole training, ranked by identities that were held out of it;
- `25 epochs, 40 % held out`: the same with more of them (by default a quarter), so trained on fewer;
- `25 epochs, 64x32`: a whole training on small images (better than a part of one on large images: Zhou et al., EcoNAS,
  CVPR 2020);
- `one-shot`: the weights of one network that trains a path drawn uniformly among the derived cells in each step, for
  `--one-shot-epochs`; batch norm is calibrated anew for each path.

- the alphas of searches: `--alphas NAME LOG ...` reads their logs, which need the operations and blocks of the truth
  set; a genotype has the logarithm of the probability that the last epoch's alphas give it, on average over the logs.

It goes on where it was stopped; `--signal NAME` measures one of them. `--collect` adds them to the truth set, and
`--describe` prints Spearman's correlation with the mAP after full training (with a bootstrap interval over genotypes),
and what is lost by taking the best one, or the best of three, by the signal.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torchreid  # noqa: E402
from given import read, rows_of, whole  # noqa: E402  beside this file
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: E402
from truth import genotype_of  # noqa: E402  beside this file

from torchreid_autoreid.checkpoint import newest_checkpoint  # noqa: E402
from torchreid_autoreid.commands.console import run  # noqa: E402
from torchreid_autoreid.commands.search import (  # noqa: E402
    build_candidate_engine,
    candidate_data,
    candidate_recipe,
    retrieval_loss,
)
from torchreid_autoreid.config.build import optimizer_kwargs, searchdata_kwargs, settings_of_result  # noqa: E402
from torchreid_autoreid.config.read import load_config, plain_config  # noqa: E402
from torchreid_autoreid.data import SearchDataManager  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402
from torchreid_autoreid.evaluation import Embeddings, evaluate  # noqa: E402
from torchreid_autoreid.genotype import KINDS, Genotype, cell_edges  # noqa: E402
from torchreid_autoreid.parallel.launch import OneProcess  # noqa: E402
from torchreid_autoreid.report.history import read_history  # noqa: E402
from torchreid_autoreid.search.halving import Rung, annealed  # noqa: E402
from torchreid_autoreid.search.plans import RungPlan  # noqa: E402
from torchreid_autoreid.search.selection import draw_genotype, log_probability  # noqa: E402
from torchreid_autoreid.search.truth import TruthSet, signal_summary  # noqa: E402
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork  # noqa: E402
from torchreid_autoreid.space.strategies import Mixture  # noqa: E402

SHARED = {
    "data.height": 128, "data.width": 64, "autoreid.channels": 16, "autoreid.layers": [1, 1, 1, 1],
    "train.batch_size": 32, "train.print_freq": 10**6, "test.eval_freq": -1, "search.strategy": "halving",
    "train.max_epoch": 63, "search.rung_candidates": [27, 9, 3], "search.rung_epochs": [1, 3, 9],
}  # fmt: skip
#: name of the folder -> epochs at the end of each rung
TRAININGS = {
    "rungs": (1, 3, 9), "2 epochs": (2,), "4 epochs": (4,), "2 epochs, images": (2,), "25 epochs": (25,),
    "25 epochs, 40 % held out": (25,), "25 epochs, 64x32": (25,),
}  # fmt: skip
SMALL_IMAGES = {"data.height": 64, "data.width": 32}
#: what differs in a training from all others: how its name ends -> settings
OWN_SETTINGS: dict[str, dict[str, Any]] = {"64x32": SMALL_IMAGES, "40 % held out": {"search.held_out": 0.4}}
#: share of the images of every identity
IMAGES_HELD_OUT = 0.2
CALIBRATION_BATCHES = 10


def configuration(options: argparse.Namespace, training: str = "") -> Any:
    own = OWN_SETTINGS.get(training.rpartition(", ")[2], {})
    settings = SHARED | {"train.seed": options.seed} | own
    words = [str(word) for pair in settings.items() for word in pair]
    return load_config(
        str(ROOT / "configs/autoreid_search.yaml"), words, root=str(options.root), sources=["market1501"]
    )


def genotypes(options: argparse.Namespace) -> list[Genotype]:
    """Those of truth.py."""
    return [genotype_of(index) for index in range(options.genotypes)]


def names_of(training: str) -> list[str]:
    if training != "rungs":
        return [training]
    return [f"{epochs} epoch{'s' * (epochs > 1)}" for epochs in TRAININGS[training]]


# -- short trainings ---------------------------------------------------------------------------------------------------


def train_shortly(training: str, options: argparse.Namespace) -> None:
    """All genotypes in each rung, in the engine that searches by candidates."""
    cfg, found = configuration(options, training), genotypes(options)
    recipe = candidate_recipe(cfg)
    if training.endswith("images"):
        images = searchdata_kwargs(cfg) | {"split": "image", "alpha_fraction": IMAGES_HELD_OUT}
        datamanager: Any = SearchDataManager(**images, share=(0, 1))
        datamanager.validation_loaders = datamanager.held_out_loaders
    else:
        datamanager = candidate_data(cfg, (0, 1))
    plan = RungPlan([Rung(len(found), epochs) for epochs in TRAININGS[training]], found.__getitem__)
    engine = build_candidate_engine(cfg, recipe, datamanager, torch.device("cpu"), OneProcess(), None, plan, ())
    engine.settings = settings_of_result(cfg) | {"search.recipe": settings_of_result(recipe)}
    engine.configuration = plain_config(cfg)
    folder = options.output / training
    newest = newest_checkpoint(folder) if folder.exists() else None
    engine.run(
        save_dir=str(folder), max_epoch=plan.total_epochs,
        start_epoch=engine.resume(newest[0]) if newest else 0, print_freq=10**6, eval_freq=-1,
        dist_metric=recipe.test.dist_metric, normalize_feature=recipe.test.normalize_feature,
    )  # fmt: skip


def scores_of(training: str, folder: Path) -> dict[str, dict[int, float]]:
    """Of the rungs that have been trained so far: name of the signal -> index of the genotype -> its figure."""
    names = names_of(training)
    found: dict[str, dict[int, float]] = {}
    history = folder / training / "history.jsonl"
    for row in rows_of([history] if history.exists() else []):
        candidate = row["candidate"]
        if candidate["score"] is not None:
            name, index = names[candidate["rung"] - 1], candidate["number"] - 1
            found.setdefault(name, {})[index] = round(row["retrieval"]["mAP"], 6)
            found.setdefault(f"{name}, AUC", {})[index] = round(row["retrieval"]["auc"], 6)
    return found


# -- one-shot ----------------------------------------------------------------------------------------------------------


def path_of(genotype: Genotype, operations: Sequence[str]) -> dict[str, Mixture]:
    """The mixtures with which the search network is the network of a genotype; all other edges hold ``none``."""
    none, found = operations.index("none"), {}
    for kind in KINDS:
        chosen = []
        for _, block, source in cell_edges(genotype.blocks):
            own = [name for name, start in getattr(genotype, kind)[block] if start == source]
            chosen.append(operations.index(own[0]) if own else none)
        weights = torch.nn.functional.one_hot(torch.tensor(chosen), len(operations)).float()
        found[kind] = Mixture(weights, chosen=tuple(chosen))
    return found


def one_shot(options: argparse.Namespace) -> None:
    """Trains uniform single paths, then ranks all genotypes by the weights that they share."""
    cfg = configuration(options)
    recipe = candidate_recipe(cfg)
    torchreid.utils.set_random_seed(cfg.train.seed)
    datamanager = candidate_data(cfg, (0, 1))
    own = cfg.autoreid
    network = AutoReIDSearchNetwork(
        datamanager.num_train_pids, "triplet", own.channels, own.layers, own.blocks, own.parts, "reid", "gdas"
    ).to(memory_format=torch.channels_last)
    optimizer = torchreid.optim.build_optimizer(torch.nn.ParameterList(network.weights()), **optimizer_kwargs(recipe))
    loss, loader = retrieval_loss(cfg), datamanager.train_loader
    rate, epochs, drawn = recipe.train.lr, options.one_shot_epochs, random.Random(f"one-shot {cfg.train.seed}")
    began = time.process_time()
    network.train()
    for epoch in range(epochs):
        for step, batch in enumerate(loader.batches(epoch, 0, len(loader))):
            for group in optimizer.param_groups:
                group["lr"] = rate * annealed((epoch + step / len(loader)) / epochs, 0.2)
            genotype = draw_genotype(network.operations, own.blocks, str(drawn.random()))
            network.mixtures = path_of(genotype, network.operations)
            outputs = network(batch["img"].to(memory_format=torch.channels_last))
            total, _ = loss(outputs, batch["pid"])
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(network.weights(), 5.0)
            optimizer.step()
        told = f"epoch {epoch + 1} of {epochs}, loss {float(total.detach()):.3f}"
        print(f"one-shot: {told}, {time.process_time() - began:.0f} s", flush=True)
    batches = [batch["img"] for batch in loader.batches(epochs, 0, CALIBRATION_BATCHES)]
    parts = {name: list(part) for name, part in datamanager.validation_loaders.items()}
    scores = {}
    for index, genotype in enumerate(genotypes(options)):
        network.mixtures = path_of(genotype, network.operations)
        calibrate(network, batches)
        query, gallery = (embeddings(network, parts[name]) for name in ("query", "gallery"))
        scores[index] = round(float(evaluate(query, gallery, metric="cosine").mAP), 6)
    spent = time.process_time() - began
    print(f"one-shot: {spent:.0f} s in all", flush=True)
    (options.output / "one-shot.json").write_text(json.dumps({f"one-shot, {epochs} epochs": scores}))


@torch.no_grad()
def calibrate(network: torch.nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """The statistics of batch norm on the present path, as the mean over some batches."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    network.train()
    for images in batches:
        network(images.to(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def embeddings(network: torch.nn.Module, batches: Sequence[Any]) -> Embeddings:
    network.eval()
    features = torch.cat([network(batch["img"].to(memory_format=torch.channels_last)) for batch in batches])
    labels = {key: torch.cat([batch[key] for batch in batches]).numpy() for key in ("pid", "camid")}
    return Embeddings(features.numpy(), labels["pid"], labels["camid"])


# -- alphas of searches ------------------------------------------------------------------------------------------------


def alphas_of(name: str, logs: Sequence[str], options: argparse.Namespace) -> None:
    """What the alphas of some searches think of each genotype."""
    last = [read_history(Path(log) / "history.jsonl")[0][-1] for log in logs]
    scores = {
        index: statistics.fmean(log_probability(genotype, own.probabilities, own.operations) for own in last)
        for index, genotype in enumerate(genotypes(options))
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"alphas-{name}.json").write_text(json.dumps({f"alphas, {name}": scores}))


# -- results -----------------------------------------------------------------------------------------------------------


def collect(options: argparse.Namespace) -> None:
    truth = TruthSet.load(options.collect)
    found: dict[str, dict[int, float]] = {}
    for training in TRAININGS:
        found |= scores_of(training, options.output)
    for file in sorted(options.output.glob("*.json")):
        found |= {name: {int(i): v for i, v in own.items()} for name, own in read(file).items()}
    if not found:
        raise UserError(f"{options.output} holds no results yet; measure first: --root DIR --output {options.output}")
    dataclasses.replace(truth, signals=dict(truth.signals) | found).save(options.collect)
    print(f"{', '.join(f'{name} ({len(values)})' for name, values in found.items())} in {options.collect}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, metavar="DIR", help="of the dataset")
    parser.add_argument("--output", type=Path, default=Path("log/signals"), metavar="DIR", help="default: log/signals")
    parser.add_argument("--signal", action="append", choices=[*TRAININGS, "one-shot"], help="default: all")
    parser.add_argument("--genotypes", type=whole(1), default=60, help="the first ones of the truth set")
    parser.add_argument("--one-shot-epochs", type=whole(1), default=60)
    parser.add_argument("--seed", type=whole(0), default=1)
    parser.add_argument("--alphas", nargs="+", metavar=("NAME", "LOG"), help="read the alphas of searches, and end")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="add what was measured to a truth set, and end")
    parser.add_argument("--describe", type=Path, metavar="FILE", help="print what a truth set says of signals, and end")
    options = parser.parse_args()
    if options.describe:
        print(signal_summary(TruthSet.load(options.describe)))
    elif options.alphas:
        if len(options.alphas) < 2:
            raise UserError(f"--alphas {options.alphas[0]} names no log; give the folder of a search after the name")
        alphas_of(options.alphas[0], options.alphas[1:], options)
    elif options.collect:
        collect(options)
    elif options.root is None:
        raise UserError("give --root DIR, the folder that holds market1501/Market-1501-v15.09.15")
    else:
        torch.set_num_threads(1)
        options.output.mkdir(parents=True, exist_ok=True)
        for signal in options.signal or ["one-shot", *TRAININGS]:
            one_shot(options) if signal == "one-shot" else train_shortly(signal, options)


if __name__ == "__main__":
    sys.exit(run(main))
