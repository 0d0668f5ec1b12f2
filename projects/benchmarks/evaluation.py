"""Time and memory of retrieval evaluation beside its peers, as ratios of one run.

    python projects/benchmarks/evaluation.py --data market1501_retail0288.npz [--torchreid DIR] [--fastreid DIR]
    python projects/benchmarks/evaluation.py --section msmt17 --section million --section labels

Every measurement runs in a process of its own, the contestants in turn, several rounds; the table shows medians. Memory
is the highest resident size beyond what the process held with its features loaded, and, `in all`, the whole of it. The
bare matrix product is that of query and gallery (or of all items with all items for re-ranking) in blocks that are
thrown away; times are also given as multiples of it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from given import whole  # beside this file

from torchreid_autoreid.commands.console import run
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import (
    Embeddings,
    RetrievalIndex,
    cluster,
    compare_clusters,
    evaluate,
    load_embeddings,
    save_embeddings,
)
from torchreid_autoreid.evaluation.distances import full_precision
from torchreid_autoreid.evaluation.neighbours import Collection, Items
from torchreid_autoreid.evaluation.space import Space
from torchreid_autoreid.files import check_output
from torchreid_autoreid.parallel.launch import OneProcess

MSMT17 = {"queries": 11659, "gallery": 82161, "dimension": 512, "identities": 3060, "cameras": 15}
FACTORIES = ("IVF1024,Flat", "IVF1024,SQ8", "IVF1024,PQ64", "HNSW16")
SEARCHES = {"IVF": ("nprobe=4", "nprobe=16", "nprobe=64"), "HNSW": ("efSearch=32", "efSearch=128", "efSearch=512")}


# --- data --------------------------------------------------------------


def clustered(count: int, dimension: int, identities: int, cameras: int, seed: int) -> Embeddings:
    """Vectors like a ReID network's: identities in groups that look alike, each image some way off its identity."""
    shared = np.random.default_rng(0)
    groups = shared.standard_normal((64, dimension), dtype=np.float32)
    centres = 0.6 * groups[shared.integers(0, 64, identities)]
    centres += 0.5 * shared.standard_normal((identities, dimension), dtype=np.float32)
    random = np.random.default_rng(seed)
    pids = random.integers(0, identities, count)
    features = random.standard_normal((count, dimension), dtype=np.float32)
    features *= 1.5
    for start in range(0, count, 4096):
        features[start : start + 4096] += centres[pids[start : start + 4096]]
    return Embeddings(features, pids, random.integers(0, cameras, count))


def make_msmt17(folder: Path) -> Path:
    """A file of MSMT17's size."""
    path = folder / "msmt17.npz"
    sizes = MSMT17["dimension"], MSMT17["identities"], MSMT17["cameras"]
    save_embeddings(path, clustered(MSMT17["queries"], *sizes, seed=1), clustered(MSMT17["gallery"], *sizes, seed=2))
    return path


def make_million(folder: Path, gallery: int, queries: int, dimension: int = 512) -> Path:
    """A folder with a gallery in .npy files, to be memory-mapped."""
    identities = gallery // 25
    features = np.lib.format.open_memmap(folder / "g_features.npy", "w+", np.float32, (gallery, dimension))
    labels = []
    for number, start in enumerate(range(0, gallery, 50000)):
        part = clustered(min(50000, gallery - start), dimension, identities, 20, seed=10 + number)
        features[start : start + len(part)] = part.features
        labels.append((part.pids, part.camids))
    features.flush()
    query = clustered(queries, dimension, identities, 20, seed=1)
    np.save(folder / "g_pids.npy", np.concatenate([pids for pids, _ in labels]))
    np.save(folder / "g_camids.npy", np.concatenate([camids for _, camids in labels]))
    for name in ("features", "pids", "camids"):
        np.save(folder / f"q_{name}.npy", getattr(query, name))
    return folder


def load(path: str) -> tuple[Embeddings, Embeddings]:
    """Query and gallery of an npz, or of a folder of .npy files with a memory-mapped gallery."""
    if not Path(path).is_dir():
        return load_embeddings(path)
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in Path(path).glob("*.npy")}
    return tuple(Embeddings(*(arrays[f"{side}_{name}"] for name in ("features", "pids", "camids"))) for side in "qg")  # type: ignore[return-value]


# --- contestants: (query, gallery, options) -> figures -----------------


def unit(features: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.array(features, dtype=np.float32)))


def product(rows: torch.Tensor, columns: torch.Tensor) -> None:
    """All inner products, block by block."""
    buffer = torch.empty(1024 * 4096)
    for column in range(0, len(columns), 4096):
        piece = columns[column : column + 4096].T
        for row in range(0, len(rows), 1024):
            some = rows[row : row + 1024]
            torch.mm(some, piece, out=buffer[: len(some) * piece.shape[1]].view(len(some), -1))


def bare_product(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    rows = unit(query.features)
    for start in range(0, len(gallery), 1 << 16):  # a gallery in a file does not fit in memory
        product(rows, unit(gallery.features[start : start + (1 << 16)]))
    return {}


def neighbour_product(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    items = torch.cat([unit(query.features), unit(gallery.features)])
    product(items, items)
    return {}


def faiss_neighbours(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    """The 21 nearest of every item by faiss's exact index."""
    index = RetrievalIndex.build(np.concatenate([query.features, gallery.features]), "Flat")
    index.search(np.concatenate([query.features, gallery.features]), 21)
    return {}


def ours(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    return evaluate(query, gallery).to_dict()


def ours_reranked(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    return evaluate(query, gallery, rerank=True).to_dict()


def ours_unexpanded(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    """The shortest lists that re-ranking knows."""
    return evaluate(query, gallery, rerank=True, k1=1, k2=1).to_dict()


def ours_clustered(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    """Pseudo-labels of queries and gallery together."""
    labels = cluster(np.concatenate([query.features, gallery.features]))
    return {"mAP": compare_clusters(labels, np.concatenate([query.pids, gallery.pids])).ari}


def ours_neighbours(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    """The 30 nearest of every item, which clusters are made of."""
    items = np.concatenate([query.features, gallery.features])
    with full_precision():
        collection = Collection(items[:0], items, Space("cosine"), OneProcess())
        Items(collection, [torch.device("cpu")]).neighbourhood(30)
    return {}


def labels_of(query: Embeddings, gallery: Embeddings) -> tuple[np.ndarray, ...]:
    return query.pids, gallery.pids, query.camids, gallery.camids


def torchreid_python(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    import torchreid

    distmat = torchreid.metrics.compute_distance_matrix(unit(query.features), unit(gallery.features), "cosine").numpy()
    cmc, mean = torchreid.metrics.evaluate_rank(distmat, *labels_of(query, gallery), use_cython=False)
    return {"mAP": float(mean), "rank1": float(cmc[0])}


def compiled(folder: Path, query: Embeddings, gallery: Embeddings) -> dict:
    """The Cython evaluation that a checkout has built in place."""
    found = sorted(folder.glob("rank_cy.*.so")) + sorted(folder.glob("rank_cy.*.pyd"))
    if not found:
        raise UserError(f"{folder} holds no built rank_cy; run its setup.py build_ext --inplace first")
    spec = importlib.util.spec_from_file_location("rank_cy", found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    distmat = (1 - unit(query.features) @ unit(gallery.features).T).numpy()
    answer = module.evaluate_cy(distmat, *labels_of(query, gallery), 50, False)
    return {"mAP": float(np.mean(answer[1])), "rank1": float(np.asarray(answer[0])[0])}


def torchreid_cython(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    return compiled(options.torchreid / "torchreid" / "metrics" / "rank_cylib", query, gallery)


def fastreid_cython(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    return compiled(options.fastreid / "fastreid" / "evaluation" / "rank_cylib", query, gallery)


def torchreid_reranking(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    """torchreid's dense re-ranking; ranking its result is left out."""
    import torchreid

    q, g = unit(query.features), unit(gallery.features)
    matrices = [torchreid.metrics.compute_distance_matrix(a, b, "cosine").numpy() for a, b in ((q, g), (q, q), (g, g))]
    torchreid.utils.re_ranking(*matrices)
    return {}


def faiss_jaccard(query: Embeddings, gallery: Embeddings, options: argparse.Namespace) -> dict:
    """The faiss Jaccard distance of SpCL and OpenUnReID, as FastReID carries it; its lambda is 0."""
    sys.path.insert(0, str(options.fastreid))
    compute_jaccard_distance = importlib.import_module("fastreid.utils.compute_dist").compute_jaccard_distance

    compute_jaccard_distance(torch.cat([unit(query.features), unit(gallery.features)]), k1=20, k2=6, search_option=3)
    return {}


Contestant = Callable[[Embeddings, Embeddings, argparse.Namespace], dict]
PLAIN: dict[str, Contestant] = {
    "bare matrix product": bare_product,
    "ours": ours,
    "torchreid, Cython": torchreid_cython,
    "FastReID, Cython": fastreid_cython,
    "torchreid, Python": torchreid_python,
}
RERANKING: dict[str, Contestant] = {
    "exact k-NN product": neighbour_product,
    "faiss Flat, 21 nearest": faiss_neighbours,
    "ours, re-ranked": ours_reranked,
    "faiss Jaccard (SpCL, OpenUnReID)": faiss_jaccard,
    "torchreid, dense re-ranking": torchreid_reranking,
}
CLUSTERS: dict[str, Contestant] = {
    "ours, 30 nearest": ours_neighbours,
    "ours, clusters (their ARI)": ours_clustered,
}
CONTESTANTS = PLAIN | RERANKING | CLUSTERS | {"ours, k1 = 1": ours_unexpanded}
SLOW = {
    "torchreid, Python",
    "torchreid, dense re-ranking",
    "faiss Jaccard (SpCL, OpenUnReID)",
    "faiss Flat, 21 nearest",
}
NEEDS = {
    "torchreid, Cython": "torchreid",
    "FastReID, Cython": "fastreid",
    "faiss Jaccard (SpCL, OpenUnReID)": "fastreid",
}


# --- measuring ----------------------------------------------------------


def memory(field: str) -> float:
    """VmRSS (now) or VmHWM (the highest so far) of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise UserError("this system has no /proc; run the benchmark on Linux")


def measure(name: str, options: argparse.Namespace) -> dict:
    """Run one contestant in this process, after a small run that loads and starts what it needs."""
    torch.set_num_threads(options.threads)
    query, gallery = load(options.data)
    small_query, small_gallery = (clustered(n, query.dimension, 10, 3, seed) for n, seed in ((64, 1), (256, 2)))
    CONTESTANTS[name](small_query, small_gallery, options)
    Path("/proc/self/clear_refs").write_text("5")  # the highest size starts again from here
    before = memory("VmRSS")
    started = time.perf_counter()
    figures = CONTESTANTS[name](query, gallery, options)
    seconds = time.perf_counter() - started
    highest = memory("VmHWM")
    kept = {key: figures[key] for key in ("mAP", "rank1") if key in figures}
    return {"seconds": seconds, "beyond": highest - before, "all": highest, **kept}


def in_own_process(name: str, data: Path, options: argparse.Namespace) -> dict:
    """The answer of `measure` from a new process."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", name, "--data", str(data)]
    command += ["--threads", str(options.threads)]
    for peer in ("torchreid", "fastreid"):
        if getattr(options, peer) is not None:
            command += [f"--{peer}", str(getattr(options, peer))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode:
        raise UserError(f"{name} failed: {(finished.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(finished.stdout.splitlines()[-1])


def compare(title: str, names: list[str], data: Path, options: argparse.Namespace) -> list[dict]:
    """Rounds of all contestants in turn; prints and returns the medians."""
    answers: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            if number == 0 or name not in SLOW:
                answers[name].append(in_own_process(name, data, options))
    print(f"\n{title}")
    print(f"{'':36}{'seconds':>10}{'x product':>11}{'MB beyond':>11}{'MB in all':>11}{'mAP':>9}{'runs':>6}")
    rows: list[dict] = []
    for name in names:
        runs = answers[name]
        row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        unit_seconds = rows[0]["seconds"] if rows else row["seconds"]
        rows.append({"name": name, "ratio": row["seconds"] / unit_seconds, "runs": len(runs), **row})
        mean = f"{row['mAP']:9.5f}" if "mAP" in row else f"{'':9}"
        print(
            f"{name:36}{row['seconds']:10.3f}{rows[-1]['ratio']:11.2f}{row['beyond']:11.0f}{row['all']:11.0f}{mean}"
            f"{len(runs):6}",
            flush=True,
        )
    return rows


def available(names: dict[str, Contestant], options: argparse.Namespace) -> list[str]:
    """The contestants whose checkout was given; the others are named, not passed over in silence."""
    missing = [name for name in names if name in NEEDS and getattr(options, NEEDS[name]) is None]
    for name in missing:
        print(f"left out: {name} (give --{NEEDS[name]} DIR)")
    return [name for name in names if name not in missing]


# --- sections -----------------------------------------------------------


def market(options: argparse.Namespace, folder: Path) -> dict:
    if not options.data or not Path(options.data).is_file():
        raise UserError("the section market needs --data FILE.npz with Market-1501's embeddings")
    data = Path(options.data)
    return {
        "plain": compare("Plain evaluation", available(PLAIN, options), data, options),
        "reranking": compare("Re-ranking", available(RERANKING, options), data, options),
    }


def msmt17(options: argparse.Namespace, folder: Path) -> dict:
    data = make_msmt17(folder)
    names = ["exact k-NN product", "bare matrix product", "ours", "ours, re-ranked", "ours, clusters (their ARI)"]
    rows = compare("MSMT17's size: 11,659 + 82,161 vectors of 512", names, data, options)
    print(f"plain and re-ranked together: {rows[2]['ratio'] + rows[3]['ratio']:.2f} x the exact k-NN product")
    data.unlink()
    return {"msmt17": rows}


def clusters(options: argparse.Namespace, folder: Path) -> dict:
    """Clustering beyond the neighbours that it starts from."""
    parts = [
        clustered(count, options.dimension, 3060, 15, seed) for seed, count in ((1, 1000), (2, options.items - 1000))
    ]
    data = folder / "clusters.npz"
    save_embeddings(data, *parts)
    rows = compare(f"Clusters of {options.items:,} vectors of {options.dimension}", list(CLUSTERS), data, options)
    seconds, memory = (rows[1][key] - rows[0][key] for key in ("seconds", "beyond"))
    print(f"beyond the neighbours: {seconds:.1f} s, {memory:.0f} MB")
    return {"clusters": rows}


def million(options: argparse.Namespace, folder: Path) -> dict:
    data = make_million(folder, options.gallery, options.queries)
    title = f"{options.gallery:,} gallery vectors of 512 from a memory-mapped file, {options.queries:,} queries"
    rows = compare(title, ["bare matrix product", "ours"], data, options)
    torch.set_num_threads(options.threads)
    query, gallery = load(str(data))
    print()
    titles = ("search", 14), ("build s", 9), ("recall@1", 10), ("recall@10", 11), ("queries/s", 11), ("mAP on 100", 12)
    print(f"{'index':16}" + "".join(f"{title:>{width}}" for title, width in titles))
    table = []
    for factory in options.factory or FACTORIES:
        started = time.perf_counter()
        index = RetrievalIndex.build(gallery.features, factory)
        build = time.perf_counter() - started
        for parameters in next((values for key, values in SEARCHES.items() if key in factory), ("",)):
            if parameters:
                index.set_parameters(parameters)
            started = time.perf_counter()
            index.search(query.features, 10)
            rate = len(query) / (time.perf_counter() - started)
            result = evaluate(query, gallery, index=index, num_retrieved=100, recall_sample=100)
            row = {"index": factory, "search": parameters, "build": build, "recall": result.recall, "rate": rate}
            table.append(row | {"mAP_on_retrieved": result.mAP})
            print(
                f"{factory:16}{parameters:>14}{build:9.0f}{result.recall[1]:10.3f}{result.recall[10]:11.3f}{rate:11.0f}"
                f"{result.mAP:12.5f}",
                flush=True,
            )
    return {"million": rows, "indexes": table}


def labels(options: argparse.Namespace, folder: Path) -> dict:
    """Memory where labels or lists are out of the ordinary, on eight threads."""
    found = {}
    options = argparse.Namespace(**vars(options) | {"threads": 8})
    cases = {
        "6 identities": (3000, 30000, 6, ["bare matrix product", "ours", "ours, re-ranked"]),
        "an identity a pair": (12000, 12000, 12000, ["bare matrix product", "ours, k1 = 1"]),
    }
    for name, (queries, gallery, identities, names) in cases.items():
        data = folder / "labels.npz"
        sides = [clustered(count, 64, identities, 6, seed) for seed, count in ((1, queries), (2, gallery))]
        save_embeddings(data, *sides)
        dense = queries * gallery * 4 / 2**20
        title = f"{name}: {queries:,} + {gallery:,} vectors of 64, 8 threads; the dense matrix has {dense:.0f} MB"
        found[name] = compare(title, names, data, options)
    return found


SECTIONS = {"market": market, "msmt17": msmt17, "million": million, "labels": labels, "clusters": clusters}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="may be given again; default market")
    parser.add_argument("--data", help="npz of Market-1501's embeddings")
    parser.add_argument("--torchreid", type=Path, metavar="DIR", help="checkout with its Cython part built in place")
    parser.add_argument("--fastreid", type=Path, metavar="DIR", help="checkout with its Cython part built in place")
    parser.add_argument("--rounds", type=whole(1), default=5, help="runs of each contestant; the slow peers run once")
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument("--items", type=whole(2000), default=93_820, help="vectors of the section clusters")
    parser.add_argument("--dimension", type=whole(1), default=512, help="of the section clusters")
    parser.add_argument("--gallery", type=whole(1), default=1_000_000, help="vectors of the section million")
    parser.add_argument("--queries", type=whole(1), default=1000, help="queries of the section million")
    parser.add_argument(
        "--factory", action="append", help="faiss factory string of the section million; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    parser.add_argument("--measure", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    if options.json:
        check_output("--json", options.json)
    figures: dict = {}
    for section in options.section or ["market"]:
        with tempfile.TemporaryDirectory() as folder:
            figures |= SECTIONS[section](options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
