"""Random search against a predictor on the same trainings: their answers, trained anew and tested on other people.

    python projects/benchmarks/answers.py --root DIR --output log/answers
    python projects/benchmarks/answers.py --output log/answers --table

A search that trains each candidate to the end has no scores but those of the truth set. So the scores of `--candidates`
of its genotypes (drawn by the seed; one training each) stand for such a search, at no cost, and three contestants see
them:

- `blind draw`: sees nothing, and answers with a genotype drawn from the space;
- `random search`: the genotype with the highest score;
- `predictor`: of a thousand further draws, the one of which a regression on the operations expects most
  (torchreid_autoreid/search/predictor.py).

Their answers are trained by the recipe of the truth set with the seed, so that all differences are paired. DIR has the
training set of the truth set in market1501/Market-1501-v15.09.15/bounding_box_train; query and bounding_box_test should
hold people that the truth set was not tested on, since its scores decide here.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from accuracy import pairs, spread  # noqa: E402  beside this file
from given import whole  # noqa: E402
from truth import SHALLOW, rows_of, share, train_genotype  # noqa: E402

from torchreid_autoreid.commands.console import run  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402
from torchreid_autoreid.genotype import Genotype, operation_names  # noqa: E402
from torchreid_autoreid.search.predictor import OperationCounts  # noqa: E402
from torchreid_autoreid.search.selection import draw_genotype  # noqa: E402
from torchreid_autoreid.search.truth import Ranked, TruthSet  # noqa: E402

CONTESTANTS = ("blind draw", "random search", "predictor")


def history_of(truth: TruthSet, seed: int, candidates: int) -> tuple[list[Genotype], list[float]]:
    """Genotypes that a search with this seed has trained, and the mAP of the first training of each."""
    own = {network.index: network for network in reversed(truth.networks) if network.layers == SHALLOW}
    if candidates > len(own):
        raise UserError(f"--candidates {candidates} is more than the {len(own)} genotypes of the truth set; lower it")
    drawn = random.Random(f"answers {seed}").sample(sorted(own), candidates)
    return [own[index].genotype for index in drawn], [own[index].mAP for index in drawn]


def answer_of(contestant: str, genotypes: list[Genotype], scores: list[float], seed: int) -> Genotype:
    def draw(index: int) -> Genotype:
        return draw_genotype(operation_names("reid"), 4, f"answers {seed} {index}", name=f"answer_{seed}_{index}")

    if contestant == "blind draw":
        return draw(0)
    if contestant == "random search":
        return genotypes[max(range(len(scores)), key=scores.__getitem__)]
    pool = [draw(index) for index in range(1, 1001)]
    return pool[int(OperationCounts(genotypes, scores).predict(pool).argmax())]


def compare(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    one, shares = options.share
    truth, done = TruthSet.load(), {(row["contestant"], row["seed"]) for row in rows_of(options.output)}
    jobs = [(name, seed) for seed in range(1, options.seeds + 1) for name in CONTESTANTS]
    for name, seed in jobs[one - 1 :: shares]:
        if (name, seed) in done:
            continue
        genotype = answer_of(name, *history_of(truth, seed, options.candidates), seed)
        row = {"contestant": name, "seed": seed, "candidates": options.candidates}
        row |= train_genotype(genotype, 100 + seed, SHALLOW, options)  # seeds of their own
        with open(options.output / f"share-{one}-of-{shares}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"seed {seed}, {name}: mAP {row['mAP']:.1%}, {row['seconds']:.0f} s", flush=True)


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: a line for each contestant, then for each pair; then how the regression is confirmed."""
    lines = ["| contestant | seeds | parameters | MACs | rank-1 | mAP |", "|---|---|---|---|---|---|"]
    found: dict[str, dict[int, float]] = {}
    for name in CONTESTANTS:
        own = [row for row in rows if row["contestant"] == name]
        if not own:
            continue
        found[name] = {row["seed"]: 100 * row["mAP"] for row in own}
        params, macs = (sum(row[key] for row in own) / len(own) for key in ("params", "macs"))
        rank1, mean_ap = (spread([100 * row[key] for row in own]) for key in ("rank1", "mAP"))
        lines.append(f"| {name} | {len(own)} | {params / 1e3:.0f} k | {macs / 1e6:.1f} M | {rank1} % | {mean_ap} % |")
    return "\n".join(lines + pairs(found) + confirmed(rows))


def confirmed(rows: list[dict[str, object]]) -> list[str]:
    """How well the regression of the whole truth set ranks the answers that the truth set does not have."""
    truth = TruthSet.load()
    means, own = truth.means(SHALLOW), {network.index: network.genotype for network in truth.networks}
    known = {genotype.cells for genotype in own.values()}
    fresh = [(Genotype.from_dict(row["genotype"]), 100 * row["mAP"]) for row in rows]
    fresh = [(genotype, mean_ap) for genotype, mean_ap in fresh if genotype.cells not in known]
    if len(fresh) < 5:
        return []
    learned = OperationCounts([own[index] for index in means], list(means.values()))
    found = Ranked.of(learned.predict([genotype for genotype, _ in fresh]), [mean_ap for _, mean_ap in fresh])
    what = (
        f"Expected by the operations of all {len(means)} genotypes of the truth set, and the mAP of {len(fresh)} others"
    )
    return ["", f"{what}: Spearman {found.correlation:+.2f} [{found.low:+.2f}, {found.high:+.2f}]."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, metavar="DIR", help="of the dataset")
    parser.add_argument("--output", type=Path, default=Path("log/answers"), metavar="DIR", help="default: log/answers")
    parser.add_argument("--candidates", type=whole(1), default=20, help="trainings that a search has seen; default: 20")
    parser.add_argument("--seeds", type=whole(1), default=8, help="1, 2, …; default: 8")
    parser.add_argument("--epochs", type=whole(1), default=25)
    parser.add_argument("--share", type=share, default=(1, 1), metavar="I/N", help="default: 1/1, all trainings")
    parser.add_argument("--table", action="store_true", help="print what has been measured so far, and end")
    options = parser.parse_args()
    if options.table:
        rows = rows_of(options.output)
        if not rows:
            raise UserError(f"{options.output} holds no results yet; train first: --root DIR --output {options.output}")
        print(table(rows))
    elif options.root is None:
        raise UserError("give --root DIR, the folder that holds market1501/Market-1501-v15.09.15")
    else:
        compare(options)


if __name__ == "__main__":
    sys.exit(run(main))
