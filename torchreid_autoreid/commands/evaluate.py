"""Evaluates person retrieval, exactly and at any size: mAP, CMC, mINP, with re-ranking if asked.

From a model and its configuration, or from the feature vectors of any framework.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchreid
from tqdm import tqdm

from ..checkpoint import Checkpoint, load_checkpoint, load_weights
from ..config.build import imagedata_kwargs, network_kwargs
from ..data import ReidDataManager
from ..data.images import small_jpeg
from ..deploy.onnx import OnnxExtractor, is_onnx
from ..engine import with_faiss_evaluation
from ..errors import UserError, short
from ..evaluation import (
    Agreement,
    Embeddings,
    Figure,
    NeighbourIndex,
    RetrievalIndex,
    RetrievalResult,
    RocCurve,
    cluster,
    compare_clusters,
    evaluate,
    figures_by_definition,
    load_embeddings,
    roc,
    save_embeddings,
)
from ..evaluation.clusters import check_clustering
from ..evaluation.embeddings import LABELS
from ..evaluation.features_file import SUFFIXES as FOREIGN
from ..evaluation.index import is_factory
from ..evaluation.result import neighbour_rows
from ..files import check_output, write_output
from ..parallel.group import group, joined
from ..parallel.launch import OneProcess, first_process_first, torchrun_processes
from ..queries import ANSWERS
from ..report.page import check_page
from ..report.retrieval import FALSE_ACCEPTS, Evaluated, camera_table, write_retrieval
from ..space.networks import AutoReIDSearchNetwork
from ..spec import Description
from .console import begin_log
from .origin import SAME_DATA, tested_network, tested_onnx

RERANKING = {"k1": 20, "k2": 6, "lambda_value": 0.3, "definition": "torchreid"}  # the defaults
USUAL: dict[str, Any] = {  # of the protocol; not told
    "protocol": "market1501",
    "draws": None,
    "seed": 0,
    "leave_out": None,
    "junk_pids": [],
    "distractor_pids": [],
    "rerank_junk": True,
    "pool": "none",
    "multi_query": "none",
}
CLUSTERING = {"k1": 30, "k2": 6, "min_samples": 4}
EXPANSION = ("query_expansion", "query_expansion_alpha", "database_augmentation")
DRAWN = ("sysu_all", "sysu_indoor", "vehicleid")
MOST_TOPK = 1 << 20
INDEX_FILES = {".faiss", ".index", ".idx", ".bin"}


@dataclass(frozen=True)
class TestSet:
    """A query and a gallery with, where they are known, the paths of their images.

    With several processes ``gallery`` is the part of this one; paths are of the whole gallery.
    """

    name: str
    query: Embeddings
    gallery: Embeddings
    gallery_size: int
    query_paths: Sequence[str] = ()
    gallery_paths: Sequence[str] = ()


def main(args: argparse.Namespace) -> int:
    cfg = args.cfg
    weights, description = prepare(args)
    device = args.device or ("cuda" if cfg.use_gpu and torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but PyTorch sees no GPU here; use --device cpu")
    with torchrun_processes(device) as world:
        if args.report and world.size > 1:
            raise UserError("--report runs in one process; start the command without torchrun")
        if world.rank:
            begin_log(world.rank)  # the first one tells what all of them find
        evaluate_all(args, cfg, weights, description, device, world)
    return 0


def evaluate_all(
    args: argparse.Namespace,
    cfg: Any,
    weights: Checkpoint | OnnxExtractor | None,
    description: Description | None,
    device: str,
    world: OneProcess,
) -> None:
    """Evaluates every test set; the first process prints and writes."""
    sets: Iterable[TestSet]
    if weights is None:
        sets = [share_of_features(args.features, world)]
    else:
        sets = extract(cfg, description, weights, device, world)
    metric = args.metric or (cfg.test.dist_metric if args.weights else "cosine")
    figures: dict[str, Any] = {}
    rows: list[Any] = []
    for test_set in sets:
        if figures and (args.save_features or args.save_index or args.cluster_labels or args.report):
            raise UserError(
                "--save-features, --save-index, --cluster-labels and --report write one dataset; give a single -t NAME"
            )
        whole = whole_gallery(test_set.gallery, world) if args.save_features or args.topk_csv else test_set.gallery
        if args.save_features and world.rank == 0:
            write(args, "save_features", partial(save_embeddings, query=test_set.query, gallery=whole))
        started = time.monotonic()
        result, curve = evaluate_set(test_set, args, metric, device, world)
        seconds = time.monotonic() - started
        options = settings(args)
        if world.rank == 0:
            print(table(test_set, result, curve, seconds, ", ".join([metric, *described(options)])))
        figures[test_set.name] = result.to_dict() | {"metric": metric, **options, "seconds": seconds}
        if curve is not None:
            figures[test_set.name]["roc"] = roc_figures(curve)
        if args.definitions:
            named = definitions(test_set, args, metric, device, world)
            figures[test_set.name]["definitions"] = [asdict(figure) for figure in named]
            if world.rank == 0:
                print(definitions_table(named))
        if args.cluster:
            neighbours = neighbour_index(args)
            agreement = clusters(test_set, args, metric, device, world, neighbours)
            figures[test_set.name]["clusters"] = asdict(agreement)
            print(clusters_table(agreement))
            if neighbours is not None:
                factory, recall = neighbours.factory, neighbours.recall
                figures[test_set.name]["clusters"] |= {"neighbours": factory, "neighbour_recall": recall}
                print("  " + ", ".join(" ".join(row) for row in neighbour_rows(factory, recall)))
        if args.topk_csv:
            rows += topk_rows(test_set, whole.pids, result, args.topk)
        if args.report:
            report(test_set, args, metric, device, world, result)
    if world.rank == 0:
        if args.topk_csv:
            write(args, "topk_csv", partial(write_topk, rows=rows))
        if args.json:
            text = json.dumps(figures, indent=1, allow_nan=False)
            write(args, "json", lambda name: Path(name).write_text(text + "\n", encoding="utf-8"))


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for besides the metric, as the file of figures says it."""
    expansion = {name: getattr(args, name) for name in EXPANSION if getattr(args, name)}
    rules = {name: value for name, value in rules_of(args).items() if value != USUAL[name]}
    reranked = {"reranked": args.rerank, **(reranking(args) if args.rerank else {})}
    return {**reranked, "cuhk03": args.cuhk03, **expansion, **rules}


def rules_of(args: argparse.Namespace) -> dict[str, Any]:
    """What ``evaluate`` takes of the protocol."""
    leave_out = args.leave_out and tuple(name for name in args.leave_out if name != "nothing")
    return {
        "protocol": args.protocol,
        "draws": 10 if args.draws is None and args.protocol in DRAWN else args.draws,
        "seed": args.seed,
        "leave_out": leave_out,
        "junk_pids": [label(pid) for pid in args.junk_pids],
        "distractor_pids": [label(pid) for pid in args.distractor_pids],
        "rerank_junk": not args.no_rerank_junk,
        "pool": args.pool or "none",
        "multi_query": args.multi_query or "none",
    }


def label(text: str) -> int | str:
    """An identity as the features have it: a whole number where it is one."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else text


def described(options: dict[str, Any]) -> Iterator[str]:
    """The same for the table's title, without what is as always."""
    if options["reranked"]:
        yield "re-ranked" if options["definition"] == "torchreid" else "re-ranked by Zhong's definition"
    if options["cuhk03"]:
        yield "CUHK03's protocol"
    yield from (f"{name.replace('_', ' ')} {options[name]}" for name in (*EXPANSION, *USUAL) if name in options)


def reranking(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters of re-ranking, as given or torchreid's."""
    return {key: value if getattr(args, key) is None else getattr(args, key) for key, value in RERANKING.items()}


def prepare(args: argparse.Namespace) -> tuple[Checkpoint | OnnxExtractor | None, Description | None]:
    """The weights, and the network that they are of; completes the options, and refuses those that would be in vain."""
    cfg = args.cfg
    weights: Checkpoint | OnnxExtractor | None = None
    description = None
    if args.weights and is_onnx(args.weights):
        weights = tested_onnx(args.weights, cfg, args.given, args.opts[::2])
    elif args.weights:
        weights = load_checkpoint(args.weights, ())
        description = tested_network(weights, cfg, args.given)
    # The configuration's keys count as the options do.
    args.rerank, args.cuhk03 = args.rerank or cfg.test.rerank, args.cuhk03 or cfg.cuhk03.use_metric_cuhk03
    check_options(args)
    check_outputs(args)
    return weights, description


def check_options(args: argparse.Namespace) -> None:
    """Refuses what would have no effect."""
    for name in RERANKING:
        if name in CLUSTERING and args.cluster:
            if getattr(args, name) is not None and (args.rerank or args.definitions):
                raise UserError(f"--{name} of --cluster or of re-ranking? do one at a time")
            continue
        if getattr(args, name) is not None and not args.rerank:
            raise UserError(f"--{name.removesuffix('_value')} is an option of --rerank; give that too, or leave it out")
    if args.fpr and (args.rerank or args.query_expansion or args.database_augmentation):
        raise UserError(
            "--fpr compares plain distances; leave out --rerank (or set test.rerank false), --query-expansion and "
            "--database-augmentation"
        )
    for name in ("cluster_labels", "cluster_method", "eps", "min_samples"):
        if getattr(args, name) is not None and not args.cluster:
            raise UserError(f"--{name.replace('_', '-')} is an option of --cluster; give that too, or leave it out")
    if args.graph and not (args.rerank or args.cluster):
        raise UserError("--graph is an option of --rerank and --cluster; give one of these too, or leave it out")
    if args.neighbours and not (args.rerank or args.cluster):
        raise UserError("--neighbours is an option of --rerank and --cluster; give one of these too, or leave it out")
    if args.neighbours and args.graph:
        raise UserError("--graph keeps exact neighbours, --neighbours finds approximate ones; leave one of them out")
    if args.neighbour_parameters and not args.neighbours:
        raise UserError("--neighbour-parameters is an option of --neighbours; give that too, or leave it out")
    if args.cluster_method == "hdbscan" and args.eps is not None:
        raise UserError("--eps is the radius of dbscan, and hdbscan finds its own; leave one of them out")
    if args.cluster:
        check_clustering(**clustering(args), eps=0.5 if args.eps is None else args.eps)
    if args.cluster_labels and Path(args.cluster_labels).suffix not in (".csv", ".npz"):
        raise UserError(f"--cluster-labels {args.cluster_labels} ends in neither .csv nor .npz; give it one of these")
    if args.draws is not None and args.protocol not in DRAWN:
        raise UserError(f"--draws is an option of --protocol {', '.join(DRAWN)}; give one, or leave it out")
    if args.leave_out and "nothing" in args.leave_out and len(set(args.leave_out)) > 1:
        raise UserError("--leave-out nothing contradicts the other --leave-out; give one of them")
    if args.no_rerank_junk and not (args.rerank and args.junk_pids):
        raise UserError("--no-rerank-junk is an option of --rerank with --junk-pid; give these too, or leave it out")
    if args.topk_csv and (args.pool or args.multi_query or args.protocol in DRAWN):
        raise UserError("--topk-csv lists images; leave out --pool, --multi-query and protocols that draw galleries")
    if args.report and (args.pool or args.multi_query or args.protocol in DRAWN):
        raise UserError("--report shows images; leave out --pool, --multi-query and protocols that draw galleries")
    if args.embed_images is not None and not (args.report and args.weights):
        raise UserError("--embed-images is an option of --report with --weights, which knows where the images are")
    if args.embed_images is not None and args.embed_images < 0:
        raise UserError(f"--embed-images must be at least 0, not {args.embed_images}")
    if args.fpr and (args.pool or args.multi_query or args.protocol in DRAWN or args.junk_pids):
        raise UserError("--fpr compares all images; leave out --pool, --multi-query, --junk-pid and drawn protocols")
    if args.definitions and (args.rerank or args.cuhk03 or args.index != "Flat" or args.no_rerank_junk):
        raise UserError(
            "--definitions does the re-ranking itself; leave out --rerank, --cuhk03 and --index (or set test.rerank "
            "and cuhk03.use_metric_cuhk03 false)"
        )
    if args.topk is not None and not args.topk_csv:
        raise UserError("--topk is an option of --topk-csv; give that too, or leave it out")
    args.topk = 10 if args.topk is None else args.topk
    if not 1 <= args.topk <= MOST_TOPK:
        raise UserError(f"--topk must be at least 1 and at most {MOST_TOPK}, not {short(args.topk)}")


def check_outputs(args: argparse.Namespace) -> None:
    """Finds out before the work, not after it, that a result has nowhere to go."""
    taken = {"--features": args.features, "--weights": args.weights, "--index": args.index}
    for option in ("json", "save_features", "save_index", "topk_csv", "cluster_labels", "report"):
        path = getattr(args, option)
        if path:
            name = f"--{option.replace('_', '-')}"
            check_output(name, path, taken)
            taken[name] = path
    if args.report:
        check_page(args.report, "--report")
    if args.save_features and Path(args.save_features).suffix.lower() in FOREIGN:
        raise UserError(f"--save-features {args.save_features} writes an npz; give a name that ends in .npz")
    if args.save_index and args.index == "Flat":
        raise UserError("--save-index needs an --index to save, such as IVF1024,Flat; the exact search has none")


def write(args: argparse.Namespace, option: str, writer: Callable[[str], Any]) -> None:
    """Lets the writer make the option's file, whole or not at all."""
    write_output(f"--{option.replace('_', '-')}", getattr(args, option), writer)


def share_of_features(path: str, world: OneProcess) -> TestSet:
    """The test set of a file; its gallery is the part of this process."""
    query, gallery = load_embeddings(path)
    check_same_features(path, query, gallery, world)
    size = len(gallery)
    if size < world.size:
        raise UserError(f"{path}: a gallery of {size} cannot be shared by {world.size} processes; start at most {size}")
    part = slice(size * world.rank // world.size, size * (world.rank + 1) // world.size)
    # A copy: a view would keep the whole gallery in every process.
    own = gallery
    if world.size > 1:
        own = gallery.take(np.arange(part.start, part.stop))
    return TestSet(Path(path).name, query, own, size)


def check_same_features(path: str, query: Embeddings, gallery: Embeddings, world: OneProcess) -> None:
    """Compares what all processes have read: all labels, and up to a thousand vectors of each part."""
    if world.size == 1 or not joined():
        return
    read = []
    for part in (query, gallery):
        rows = part.features[:: max(1, len(part) // 1000)]
        labels = (getattr(part, name) for name in LABELS)
        read += [torch.from_numpy(np.array(values, order="C")) for values in (rows, *labels)]
    group(True).check_same("at the start", f"give all processes the same file {path}", features=read)


def whole_gallery(part: Embeddings, world: OneProcess) -> Embeddings:
    """The gallery of which every process holds a part."""
    if world.size == 1:
        return part
    return Embeddings(*(world.concatenate(getattr(part, name)) for name in ("features", *LABELS)))


def extract(
    cfg: Any, description: Description | None, weights: Checkpoint | OnnxExtractor, device: str, world: OneProcess
) -> Iterator[TestSet]:
    """The test sets of ``data.targets``, embedded by the model.

    Without a description it is an ONNX file, or the network of a search.
    """
    options = imagedata_kwargs(cfg) | {"sources": cfg.data.targets, "train_sampler": "SequentialSampler"}
    everyone = group(world.size > 1)
    with everyone.together(), first_process_first(world):  # it may have to draw or to unpack the data
        manager = ReidDataManager(**options)
    everyone.check_same("at the start", SAME_DATA, test_images=manager.tested_images())
    model: torch.nn.Module
    if isinstance(weights, OnnxExtractor):
        model = weights
    else:
        if description is not None:
            model = description.build(manager.num_train_pids)
        else:
            model = AutoReIDSearchNetwork(manager.num_train_pids, **network_kwargs(cfg))
        load_weights(model, weights)
    if device == "cpu":  # as in train.py
        model = model.to(memory_format=torch.channels_last)
    engine = with_faiss_evaluation(
        torchreid.engine.ImageSoftmaxEngine(manager, model.to(device), optimizer=None, use_gpu=device == "cuda"),
        distributed=world.size > 1,
    )
    engine.flip_test = cfg.recipe.flip_test
    for name, loaders in manager.test_loader.items():
        with Bar(world) as bar:
            query, gallery = engine.extract_test_set(
                loaders["query"], loaders["gallery"], cfg.test.normalize_feature, bar
            )
        paths = [[item[0] for item in loaders[part].dataset.data] for part in ("query", "gallery")]
        yield TestSet(name, query, gallery, len(paths[1]), *paths)


def evaluate_set(
    test_set: TestSet,
    args: argparse.Namespace,
    metric: str,
    device: str,
    world: OneProcess,
) -> tuple[RetrievalResult, RocCurve | None]:
    result = ranked(test_set, args, metric, device, world, args.rerank)
    if not args.fpr:
        return result, None
    distributed = world.size > 1
    left_out = rules_of(args)["leave_out"]
    return result, roc(
        test_set.query, test_set.gallery, args.fpr, metric, device, leave_out=left_out, distributed=distributed
    )


def ranked(
    test_set: TestSet, args: argparse.Namespace, metric: str, device: str, world: OneProcess, rerank: bool
) -> RetrievalResult:
    with Bar(world) as bar:
        return evaluate(
            test_set.query,
            test_set.gallery,
            metric=metric,
            rerank=rerank,
            **reranking(args),
            **{name: value for name, value in rules_of(args).items() if name != "draws" or value is not None},
            query_expansion=args.query_expansion,
            query_expansion_alpha=args.query_expansion_alpha,
            database_augmentation=args.database_augmentation,
            index=make_index(test_set, args, metric, device, world, bar),
            search_parameters=args.search_parameters,
            max_rank=args.max_rank,
            device=device,
            use_metric_cuhk03=args.cuhk03,
            graph=args.graph if rerank else None,
            neighbours=neighbour_index(args) if rerank else None,
            topk=max(args.topk if args.topk_csv else 0, ANSWERS if args.report else 0),
            distributed=world.size > 1,
            progress=bar,
        )


def neighbour_index(args: argparse.Namespace) -> NeighbourIndex | None:
    """What finds the neighbours of re-ranking and clusters, if not all are compared."""
    return NeighbourIndex(args.neighbours, args.neighbour_parameters or "", seed=args.seed) if args.neighbours else None


def report(
    test_set: TestSet, args: argparse.Namespace, metric: str, device: str, world: OneProcess, result: RetrievalResult
) -> None:
    """Writes the page of an evaluation; what it shows besides the result is measured by plain distances."""
    rules = rules_of(args)
    query, gallery = test_set.query, test_set.gallery
    curve = None
    strangers = len(np.unique(np.concatenate([query.pids, gallery.pids]))) > 1
    if strangers and not rules["junk_pids"]:
        with Bar(world) as bar:
            curve = roc(query, gallery, FALSE_ACCEPTS, metric, device, leave_out=rules["leave_out"], progress=bar)
    asked = ("leave_out", "junk_pids", "distractor_pids")
    page = Evaluated(
        test_set.name,
        ", ".join([metric, *described(settings(args))]),
        query,
        gallery,
        result,
        ranked(test_set, args, metric, device, world, False) if args.rerank else None,
        curve,
        camera_table(query, gallery, metric=metric, device=device, **{name: rules[name] for name in asked}),
        test_set.query_paths,
        test_set.gallery_paths,
    )
    write_retrieval(page, args.report, small_jpeg, args.embed_images or 0)


def definitions(
    test_set: TestSet, args: argparse.Namespace, metric: str, device: str, world: OneProcess
) -> list[Figure]:
    """The figures under each definition in use."""
    rules = {name: value for name, value in rules_of(args).items() if name != "rerank_junk" and value is not None}
    expansion = {name: getattr(args, name) for name in EXPANSION}
    with Bar(world) as bar:
        return figures_by_definition(
            test_set.query,
            test_set.gallery,
            metric=metric,
            device=device,
            distributed=world.size > 1,
            progress=bar,
            **rules,
            **expansion,
        )


def definitions_table(figures: Sequence[Figure]) -> str:
    rows = [("mAP", "rank-1", "ranking", "AP of a query", "reported by")]
    rows += [(f"{f.mAP:.2%}", f"{f.rank1:.2%}", f.ranking, f.precision, f.reported_by or "-") for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  " + "  ".join(f"{text:<{w}}" for text, w in zip(row, [*widths, 0], strict=True)) for row in rows
    )


def clustering(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`cluster`, as given or by default."""
    return {name: value if getattr(args, name) is None else getattr(args, name) for name, value in CLUSTERING.items()}


def clusters(
    test_set: TestSet,
    args: argparse.Namespace,
    metric: str,
    device: str,
    world: OneProcess,
    neighbours: NeighbourIndex | None,
) -> Agreement:
    """Clusters queries and gallery together, writes the labels if asked, and compares them with the identities."""
    if world.size > 1:
        raise UserError("--cluster runs in one process; start the command without torchrun")
    query, gallery = test_set.query, test_set.gallery
    with Bar(world) as bar:
        features = np.concatenate([query.features, gallery.features])
        labels = cluster(
            features,
            args.cluster_method or "dbscan",
            args.eps,
            metric=metric,
            device=device,
            progress=bar,
            graph=args.graph,
            neighbours=neighbours,
            **clustering(args),
        )
    if args.cluster_labels:
        csv_wanted = Path(args.cluster_labels).suffix == ".csv"
        write(
            args,
            "cluster_labels",
            partial(write_clusters, test_set=test_set, labels=labels, table_of_images=csv_wanted),
        )
    return compare_clusters(labels, np.concatenate([query.pids, gallery.pids]))


def write_clusters(path: str, test_set: TestSet, labels: np.ndarray, table_of_images: bool) -> None:
    """The cluster of each image, -1 for none: a table, or the arrays of an npz."""
    parts: dict[str, Any] = {"query": labels[: len(test_set.query)], "gallery": labels[len(test_set.query) :]}
    with open(path, "wb") as file:
        if not table_of_images:
            np.savez(file, **{f"{part}_clusters": of_part for part, of_part in parts.items()})
            return
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text)
        writer.writerow(["part", "index", "path", "cluster"])
        for part, of_part in parts.items():
            paths = getattr(test_set, f"{part}_paths")
            writer.writerows([part, i, paths[i] if paths else "", label] for i, label in enumerate(of_part.tolist()))
        text.flush()
        text.detach()


def clusters_table(agreement: Agreement) -> str:
    return (
        f"  {agreement.num_clusters} clusters, {agreement.num_noise} images in none; ARI {agreement.ari:.4f}, "
        f"NMI {agreement.nmi:.4f}, pairwise F {agreement.f:.4f}"
    )


def make_index(
    test_set: TestSet, args: argparse.Namespace, metric: str, device: str, world: OneProcess, bar: Bar
) -> str | RetrievalIndex:
    """What ``evaluate`` takes for its index: a factory string, or one that was read or is to be written."""
    # A file that is called like an index is not meant; ./Flat is.
    given = Path(args.index).is_file() and not is_factory(args.index, test_set.gallery.dimension, metric)
    if not given and Path(args.index).suffix in INDEX_FILES:
        raise UserError(f"there is no index file {args.index}; make it with --index IVF1024,Flat --save-index FILE")
    if not given and not args.save_index:
        return args.index
    if world.size > 1:
        raise UserError("an index file holds the whole gallery; run in one process, or build the index anew each time")
    if args.database_augmentation:
        raise UserError("an index file holds the gallery as it is; leave --database-augmentation out")
    if given:
        index = RetrievalIndex.load(args.index, test_set.gallery.dimension, metric, device)
    else:
        index = RetrievalIndex.build(test_set.gallery.features, args.index, metric, device, progress=bar)
        index.visit_more_lists()
    if args.save_index:
        write(args, "save_index", index.save)
    return index


class Bar:
    """Shows what an evaluation is doing as a bar with the time left, on a terminal."""

    def __init__(self, world: OneProcess) -> None:
        self.hidden = world.rank > 0 or not sys.stderr.isatty()
        self.what = ""
        self.bar: tqdm | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.bar is None or what != self.what:
            self.__exit__()
            self.what = what
            self.bar = tqdm(desc=what, total=total, disable=self.hidden, miniters=1)
        self.bar.update(done - self.bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def table(test_set: TestSet, result: RetrievalResult, curve: RocCurve | None, seconds: float, kind: str) -> str:
    suffix = "" if result.exact else " on what was retrieved"
    rows = [
        *((f"{label}{suffix}", f"{value:.2%}") for label, value in result.shown().items()),
        *((f"rank-{rank}", f"{result.rank(rank):.2%}") for rank in (1, 5, 10, 20) if rank <= len(result.cmc)),
        *((f"recall@{k} against exact search", f"{value:.2%}") for k, value in result.recall.items()),
    ]
    for row in roc_figures(curve) if curve is not None else ():
        threshold = "none" if row["threshold"] is None else f"{row['threshold']:.4g}"
        label = f"true-accept rate at false-accept rate {row['fpr']:g} (threshold {threshold})"
        rows.append((label, f"{row['tpr']:.2%}"))
    rows += [
        ("queries with a true match", f"{result.num_valid_queries} of {len(result.average_precision)}"),
        ("gallery", f"{test_set.gallery_size} x {test_set.gallery.dimension}"),
        ("index", result.index if result.exact else f"{result.index} (approximate)"),
        *result.neighbour_rows(),
        ("seconds", f"{seconds:.1f}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"{test_set.name} ({kind})", *(f"  {name:<{width}}  {value:>12}" for name, value in rows)])


def roc_figures(curve: RocCurve) -> list[dict[str, float | None]]:
    return [
        {
            "fpr": float(fpr),
            "achieved_fpr": float(achieved),
            "tpr": float(tpr),
            "threshold": float(threshold) if np.isfinite(threshold) else None,  # JSON has no infinity
        }
        for fpr, achieved, tpr, threshold in zip(
            curve.fpr, curve.achieved_fpr, curve.tpr, curve.thresholds, strict=True
        )
    ]


def topk_rows(test_set: TestSet, gallery_pids: np.ndarray, result: RetrievalResult, topk: int) -> list[list[Any]]:
    assert result.topk_indices is not None
    assert result.topk_distances is not None
    return [
        [
            test_set.name,
            query,
            test_set.query_paths[query] if test_set.query_paths else "",
            rank,
            index,
            test_set.gallery_paths[index] if test_set.gallery_paths else "",
            f"{distance:.7g}",
            int(test_set.query.pids[query] == gallery_pids[index]),
        ]
        for query, nearest in enumerate(zip(result.topk_indices, result.topk_distances, strict=True))
        for rank, (index, distance) in enumerate(zip(*(part[:topk] for part in nearest), strict=True), start=1)
        if index >= 0  # else the gallery has fewer
    ]


def write_topk(path: str, rows: Sequence[Sequence[Any]]) -> None:
    # A name may have bytes that are no text; the numbers beside it say which image is meant.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "query", "query_path", "rank", "gallery", "gallery_path", "distance", "true_match"])
        writer.writerows(rows)
