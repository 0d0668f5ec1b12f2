"""How many strangers a calibrated gallery takes for somebody, and how long a query takes.

    python projects/benchmarks/gallery.py --data market1501_retail0288.npz [--draws 40] [--far 0.01 0.001]
    python projects/benchmarks/gallery.py --enrolled 100000 --dimension 512

With data: half of the identities, drawn anew each time, are enrolled by their gallery images; all images of the other
half are strangers. The achieved false-accept rate is given relative to the one asked for, as mean and standard error
over the draws; the detection-and-identification rate is the share of queries of people enrolled that are known, and as
who they are. Time is that of single queries, beside the product of the query with all vectors in float32; on a busy
machine the processor's time, of all threads together, tells more. Memory is the highest beyond the start, with pages of
the file that are mapped, and private memory without these.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from given import number, whole  # beside this file

from torchreid_autoreid.commands.console import run
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import load_embeddings
from torchreid_autoreid.gallery import Gallery


def strangers(path: str, rates: list[float], draws: int) -> None:
    query, gallery = load_embeddings(path)
    people = np.unique(gallery.pids[gallery.pids > 0])
    found: dict[float, list[tuple[float, float]]] = {far: [] for far in rates}
    for seed in range(draws):
        drawn = np.random.default_rng(seed).permutation(people)[: len(people) // 2]
        inside, asked = np.isin(gallery.pids, drawn), np.isin(query.pids, drawn)
        outside = ~inside & (gallery.pids > 0)
        others = np.concatenate([gallery.features[outside], query.features[~asked]])
        with tempfile.TemporaryDirectory() as folder, Gallery.create(folder, gallery.dimension) as enrolled:
            enrolled.add(gallery.features[inside], gallery.pids[inside])
            unknown = enrolled.query(others, threshold=-1).scores
            own = enrolled.query(query.features[asked], threshold=-1)
            right = own.pids == query.pids[asked]
            for far in rates:
                threshold = enrolled.calibrate(far).threshold
                found[far].append(((unknown > threshold).mean() / far, (right & (own.scores > threshold)).mean()))
    for far, values in found.items():
        (rate, known), error = np.mean(values, axis=0), np.std(values, axis=0)[0] / np.sqrt(draws)
        print(f"false-accept rate {far:.2%}: achieved {rate:.2f} ± {error:.2f} times that; identified {known:.1%}")


def memory(field: str) -> float:
    """A field of /proc/self/status in MB: VmHWM the highest resident size, RssAnon what is private now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def seconds(enrolled: int, dimension: int, queries: int, threads: int) -> None:
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    random = np.random.default_rng(0)
    centres = random.normal(size=(enrolled // 10, dimension)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, Gallery.create(folder, dimension) as gallery:
        for first in range(0, len(centres), 1000):
            people = np.repeat(np.arange(first, min(first + 1000, len(centres))), 10)
            gallery.add(centres[people] + 0.9 * random.normal(size=(len(people), dimension)), people)
        asked = centres[np.arange(queries) % len(centres)] + 0.9 * random.normal(size=(queries, dimension)).astype(
            np.float32
        )
        Path("/proc/self/clear_refs").write_text("5")  # the highest size starts again from here
        before, private = memory("VmRSS"), memory("RssAnon")
        for query in asked[:2]:  # the second makes the codes
            gallery.query(query[None], threshold=0.5)
        vectors, times = torch.randn(enrolled, dimension) if enrolled <= 200_000 else None, []
        for query in asked:
            started = [now()]
            gallery.query(query[None], threshold=0.5)
            started.append(now())
            if vectors is not None:
                torch.mv(vectors, torch.from_numpy(query))
            started.append(now())
            times.append(np.diff(started, axis=0) * 1e3)
        highest, kept = memory("VmHWM") - before, memory("RssAnon") - private
    middle, least = np.median(times, axis=0), np.min(times, axis=0)
    what = ["a query", *(["the product"] if vectors is not None else [])]
    print(f"{enrolled} × {dimension}, {threads} threads:")
    for row, name in enumerate(what):
        print(f"  {name}: {middle[row, 0]:.1f} ms (least {least[row, 0]:.1f}), processor {middle[row, 1]:.1f} ms")
    print(f"  memory: {highest:.0f} MB, private {kept:.0f} MB{' with the product' if vectors is not None else ''}")


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FILE.npz", help="embeddings to draw identities from")
    parser.add_argument("--far", type=number(1.0), nargs="+", default=[0.01, 0.001], help="false-accept rates")
    parser.add_argument("--draws", type=whole(1), default=40, help="of the identities that are enrolled")
    parser.add_argument("--enrolled", type=whole(1), help="vectors, made up, to measure the time with")
    parser.add_argument("--dimension", type=whole(1), default=512, help="of these")
    parser.add_argument("--queries", type=whole(1), default=100, help="asked one by one")
    parser.add_argument("--threads", type=whole(1), default=2, help="of PyTorch and faiss")
    args = parser.parse_args()
    if not (args.data or args.enrolled):
        raise UserError("give --data FILE.npz for rates, or --enrolled N for times")
    if args.data:
        strangers(args.data, args.far, args.draws)
    if args.enrolled:
        seconds(args.enrolled, args.dimension, args.queries, args.threads)


if __name__ == "__main__":
    sys.exit(run(main))
