"""What can be typed behind ``autoreid``: options, keys and values. Nothing here takes long to import."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from yacs.config import CfgNode

from ..config.check import check_search_config, check_test_config, check_train_config
from ..config.read import expanded_path, read_config
from ..errors import SharedError, UserError

__all__ = ["COMMANDS", "Command", "Parser", "base_parser", "config_from_args", "given_config", "parse", "told_once"]

RESUME_HELP = (
    "go on from this checkpoint, or from the newest whole one of a log folder; auto: from the newest one of "
    "data.save_dir, and from the beginning if there is none yet, so that one command serves the first start and every "
    "restart (torchrun --max-restarts, a pre-emptible queue)"
)


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, and takes options before, between and behind ``KEY VALUE`` pairs."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self.parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help shows all options\n")


def path(text: str) -> str:
    """The type of options that are paths: a leading ``~``, which a shell leaves in ``--output=~/x``, is the home."""
    try:
        return expanded_path(text, "the path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def base_parser(description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """The options of torchreid's ``scripts/main.py``.

    Args:
        description: a sentence.
        epilog: examples, shown as they are.

    >>> base_parser("Trains.").parse_args(["--root", "data", "train.max_epoch", "3"]).opts
    ['train.max_epoch', '3']
    """
    parser = Parser(
        usage="%(prog)s [OPTION ...] [KEY VALUE ...]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file",
        metavar="YAML",
        type=path,
        default="",
        help="a file, or the name of one that is shipped: autoreid configs",
    )
    parser.add_argument("-s", "--sources", metavar="NAME", nargs="+", help="datasets to train on")
    parser.add_argument("-t", "--targets", metavar="NAME", nargs="+", help="datasets to test on")
    parser.add_argument("--transforms", metavar="NAME", nargs="+", help="augmentation, such as random_flip random_crop")
    parser.add_argument(
        "--root", metavar="DIR", type=path, default="", help="folder that holds the datasets (default: reid-data)"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resulting configuration, and end")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing, and end")
    parser.add_argument(
        "opts",
        metavar="KEY VALUE",
        nargs="*",
        default=[],
        help="keys of the configuration, such as train.max_epoch 20; they override the file "
        "(torchreid_autoreid/keys.py explains all keys)",
    )
    return parser


def config_from_args(args: argparse.Namespace) -> CfgNode:
    """The configuration that the options ask for.

    Raises:
        UserError: as :func:`~torchreid_autoreid.config.read.load_config`.
    """
    return given_config(args)[0]


def given_config(args: argparse.Namespace) -> tuple[CfgNode, set[str]]:
    """:func:`config_from_args`, and the keys that somebody has given; all pairs are in ``opts`` then."""
    names = {}
    for option in ("transforms", "targets", "sources"):
        names[option], pairs = _split_off_pairs(getattr(args, option) or [])
        setattr(args, option, names[option])
        args.opts = [*pairs, *args.opts]
    return read_config(args.config_file, args.opts, root=args.root, **names)


def _split_off_pairs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, and the KEY VALUE pairs behind them, which argparse takes for more names.

    >>> _split_off_pairs(["market1501", "train.max_epoch", "3"])
    (['market1501'], ['train.max_epoch', '3'])
    """
    # No name of a dataset or transform has a dot, and no key but the top one is without.
    first = next((i for i, word in enumerate(words) if "." in word or word == "use_gpu"), len(words))
    return list(words[:first]), list(words[first:])


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Under torchrun, only local rank 0 prints usage and errors; the others raise :class:`SharedError`."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    except UserError as error:
        raise SharedError(str(error)) from None


# -- the options of each command, with its examples --------------------------------------------------------------------

_SEARCH = """
examples:
  # the embedded default: draws its own pedestrians, no download, no GPU, two to three minutes
  autoreid search --config-file autoreid_search.yaml
  # the paper's search on Market-1501, which is expected in DIR/market1501/Market-1501-v15.09.15
  autoreid search --config-file autoreid_search_market1501.yaml --root DIR
  # your own images in DIR/train, DIR/query and DIR/gallery, second order, another log folder
  autoreid search --config-file autoreid_search.yaml -s folder -t folder --root DIR \\
      search.order 2 data.save_dir log/mine
  # on four GPUs: each takes its share of every batch, and the search is that of one GPU
  torchrun --nproc_per_node 4 -m torchreid_autoreid search --config-file autoreid_search_market1501.yaml \\
      --root DIR search.amp bfloat16
  # another strategy with alphas: gdas, pc_darts, drnas
  autoreid search --config-file autoreid_search.yaml search.strategy gdas
  # six random genotypes, each trained for search.candidate_epochs, by default five
  autoreid search --config-file autoreid_search.yaml search.strategy random train.max_epoch 30
  # the genotype that the alphas prefer, without a selection among networks that they propose
  autoreid search --config-file autoreid_search.yaml search.selection strength
  # go on after an interruption: the checkpoint has the configuration
  autoreid search --resume log/search
  # go on if there is a checkpoint, else begin: the same command for a queue that may stop a job at any time
  autoreid search --config-file autoreid_search.yaml --resume auto

The log folder (data.save_dir) holds genotype.json (the answer), report.html (the pictures), history.jsonl (a line an
epoch), selection/ (the log of the candidates that retrieval chose from), checkpoint.pth (latest),
checkpoint-previous.pth (the one before it), checkpoint-best.pth (best retrieval on the held-out half), queries.json (of
that measurement), provenance.json, config.yaml, search.log and TensorBoard events.
"""

_TRAIN = """
examples:
  # the network that the embedded search has found, on the same drawn pedestrians, about three minutes
  autoreid train --config-file autoreid_train.yaml --genotype log/search/genotype.json
  # the authors' cells by the paper's recipe on Market-1501, from ImageNet weights that pretrain has made
  autoreid train --config-file autoreid_train_market1501.yaml --root DIR \\
      --genotype retrieval autoreid.pretrained log/pretrain/checkpoint-best.pth
  # ResNet-50 by the same recipe, for comparison
  autoreid train --config-file autoreid_train_market1501.yaml --root DIR model.name resnet50
  # on four GPUs: each takes its share of every batch, and the training is that of one GPU
  torchrun --nproc_per_node 4 -m torchreid_autoreid train --config-file autoreid_train_market1501.yaml \\
      --root DIR --genotype retrieval autoreid.pretrained log/pretrain/checkpoint-best.pth recipe.amp bfloat16
  # go on after an interruption: the checkpoint has the configuration
  autoreid train --resume log/train
  # test a trained network
  autoreid evaluate --weights log/train/checkpoint-best.pth

The log folder (data.save_dir) holds checkpoint.pth (latest), checkpoint-previous.pth (the one before it),
checkpoint-best.pth (best on the held-out identities, or on the first target), results.json (figures of the best one on
all targets), history.jsonl, config.yaml, train.log and TensorBoard events.
"""

_EVALUATE = """
examples:
  # feature vectors of any framework, plain and re-ranked
  autoreid evaluate --features features.npz
  autoreid evaluate --features features.npz --rerank --json figures.json
  # a page that shows how far to trust it, at which threshold people are told apart, and where it fails
  autoreid evaluate --features features.npz --rerank --report retrieval.html
  # an approximate index for a very large gallery; the figures say so and come with the recall against exact search
  autoreid evaluate --features features.npz --index IVF1024,Flat
  # a trained network on the test sets of its training, and on another one
  autoreid evaluate --weights log/train/checkpoint-best.pth
  autoreid evaluate --weights log/train/checkpoint-best.pth -t market1501 --root DIR
  autoreid evaluate --weights model.pth.tar-60 -s market1501 -t market1501 --root DIR \\
      model.name osnet_x1_0
  # the file that is deployed, whoever made it: what export, int8 or another tracker's network costs in mAP
  autoreid evaluate --weights reid.onnx -t market1501 --root DIR
  # several processes or GPUs: each extracts and holds its part of the gallery; the figures stay the same
  torchrun --nproc_per_node 2 -m torchreid_autoreid evaluate --features features.npz --rerank

The npz has query_features (N, D), query_pids (N,), query_camids (N,), gallery_features, gallery_pids, gallery_camids;
the camids of both may be missing, and clothids and tracklets of either be there. Labels are whole numbers or names.
A .mat, or a dict of tensors in a .pt or .pth, may also call them query_f, query_label, query_cam (pytorch_result.mat of
layumi's baseline, whose Market-1501 needs --junk-pid -1), or qf, q_pids, q_camids, gf, g_pids, g_camids and the like.
A checkpoint says itself which network it holds, for which size of images, how it is tested (metric, flip test) and on
what (targets, root); keys that contradict it are refused, but test.*, -t and --root may be given. An ONNX file of
export says the same but for targets and root; for those of others data.*, recipe.flip_test and test.* say it. For other
files the network is model.name; with model.name autoreid, that of autoreid.genotype, autoreid.channels, autoreid.layers
and recipe.neck.
"""

_GALLERY = """
examples:
  # enrol crops, DIR/PERSON/*.jpg or names that begin with PERSON_, by a trained network or an ONNX file
  autoreid gallery build GALLERY --images DIR --weights log/train/checkpoint-best.pth
  autoreid gallery calibrate GALLERY --far 0.01
  autoreid gallery query GALLERY --images crop.jpg --weights log/train/checkpoint-best.pth
  # a page for a browser on this machine: drop a crop, see who it is
  autoreid gallery serve GALLERY --weights log/train/checkpoint-best.pth
  autoreid gallery add GALLERY --images DIR --weights log/train/checkpoint-best.pth
  autoreid gallery remove GALLERY --pids PERSON
  # with feature vectors of any framework: gallery_features and gallery_pids are enrolled, query_features asked for
  autoreid gallery build GALLERY --features features.npz

Calibration needs no labels of the site: it takes scores between different people enrolled, or those of a cohort of
strangers (--images with --weights, or the gallery part of --features).
"""

_PRETRAIN = """
examples:
  # ImageNet in DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, eight GPUs
  torchrun --nproc_per_node 8 -m torchreid_autoreid pretrain --data DIR --genotype log/search/genotype.json
  # then
  autoreid train --config-file autoreid_train_market1501.yaml --root DIR \\
      --genotype log/search/genotype.json autoreid.pretrained log/pretrain/checkpoint-best.pth

build_model(name, ..., pretrained=True) finds the weights as NAME.pth in the folder that the environment variable
TORCHREID_AUTOREID_PRETRAINED names. The recipe is that of DARTS for ImageNet (ICLR 2019, appendix A.2.3)
with a cosine. The output folder holds checkpoint.pth (latest), checkpoint-previous.pth (the one before it),
checkpoint-best.pth (best top-1) and history.jsonl.
"""

_EXPORT = """
examples:
  # a checkpoint of train.py says itself which network it holds
  autoreid export --weights log/train/checkpoint-best.pth --format onnx --output reid.onnx
  # weights of torchreid's own training, with the network they belong to
  autoreid export --weights model.pth.tar-60 --output osnet.onnx model.name osnet_x1_0

The file takes standardised images (B, 3, height, width) and gives features (B, D); its metadata hold genotype, size,
mean, standard deviation and version (the README shows how to read and use them).
"""

_REPORT = """
A search writes its report by itself when it ends. This command writes it for a search that is still running, was
stopped, or ran elsewhere. The page needs no network and no other file: send it as it is. Several searches are
compared on one page, which ranks only what was measured alike; runs that differ in their seed only are one group.

The log folder is the data.save_dir of the search. Read are
  history.jsonl   a line an epoch; a torn last line is left out, and the page says so
  genotype.json   the cells found so far
  config.yaml     the configuration; the page does without it, and without costs then
  queries.json, provenance.json: queries of the best measurement, and where the search was made; likewise

examples:
  autoreid report log/search
  autoreid report log/search --output search.html
  # with the figures of the trained network, apart from those of the search
  autoreid report log/search --trained log/train --beside log/resnet50
  # on this machine alone, and refreshed while the search runs
  autoreid report log/search --serve
  autoreid report log/darts-1 log/darts-2 log/gdas-1 log/gdas-2 --output comparison.html

The path of the page is printed, or its address (--serve, which Ctrl-C ends). Exit status: 0 done; 2 the folder or one
of its files is not what it should be.
"""


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", metavar="PATH|DIR|auto", type=path, default="", help=RESUME_HELP)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--genotype",
        metavar="PRESET|JSON",
        type=path,
        default="",
        help="the cells: a preset or a genotype.json of search.py",
    )
    parser.add_argument("--resume", metavar="PATH|DIR|auto", type=path, default="", help=RESUME_HELP)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--weights", metavar="FILE", type=path, help="a checkpoint, *.onnx, or a state dict of model.name"
    )
    source.add_argument(
        "--features", metavar="FILE", type=path, help="feature vectors of any framework: *.npz, *.mat, *.pt"
    )
    parser.add_argument(
        "--metric", choices=("cosine", "euclidean"), help="default: cosine; test.dist_metric for a model"
    )
    parser.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking (Zhong et al., CVPR 2017)")
    parser.add_argument("--k1", type=int, help="neighbours of a k-reciprocal set (default: 20; of --cluster: 30)")
    parser.add_argument("--k2", type=int, help="neighbours averaged in local query expansion (default: 6)")
    parser.add_argument("--lambda", dest="lambda_value", type=float, help="share of the plain distance (default: 0.3)")
    parser.add_argument(
        "--definition",
        choices=("torchreid", "zhong"),
        help="torchreid squares the distances once more than the paper (default: torchreid)",
    )
    parser.add_argument("--query-expansion", type=int, default=0, metavar="N", help="average N neighbours into a query")
    parser.add_argument(
        "--query-expansion-alpha", type=float, default=0.0, metavar="A", help="weight them by similarity ** A"
    )
    parser.add_argument(
        "--database-augmentation", type=int, default=0, metavar="N", help="average N neighbours into a gallery item"
    )
    parser.add_argument(
        "--index",
        default="Flat",
        metavar="FACTORY",
        help="faiss index, such as IVF1024,Flat or HNSW32, or a file of one (default: Flat, which is exact)",
    )
    parser.add_argument("--save-index", metavar="FILE", type=path, help="write the index, to be given to --index again")
    parser.add_argument("--search-parameters", default="", metavar="TEXT", help="of the index, such as nprobe=32")
    parser.add_argument(
        "--protocol",
        choices=("market1501", "sysu_all", "sysu_indoor", "vehicleid"),
        default="market1501",
        help="which galleries are searched (default: market1501; the others draw them at random)",
    )
    parser.add_argument("--draws", type=int, help="galleries that --protocol draws (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random (default: 0)")
    parser.add_argument(
        "--leave-out",
        action="append",
        choices=("camera", "clothes", "nothing"),
        help="gallery items of the query's identity that are left out; may be repeated (default: camera, if known)",
    )
    parser.add_argument(
        "--junk-pid",
        dest="junk_pids",
        action="append",
        default=[],
        metavar="PID",
        help="identity that is passed over (Market-1501: -1); may be repeated",
    )
    parser.add_argument(
        "--distractor-pid",
        dest="distractor_pids",
        action="append",
        default=[],
        metavar="PID",
        help="identity of nobody (Market-1501: 0); may be repeated",
    )
    parser.add_argument("--no-rerank-junk", action="store_true", help="leave junk out of the neighbours of --rerank")
    parser.add_argument("--pool", choices=("mean", "max"), help="make one vector of each tracklet")
    parser.add_argument(
        "--multi-query", choices=("mean", "max"), help="make one query of all of an identity and camera"
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="also cluster queries and gallery together, and compare with the identities",
    )
    parser.add_argument("--cluster-labels", metavar="FILE", type=path, help="write the clusters, as .csv or .npz")
    parser.add_argument(
        "--cluster-method",
        choices=("dbscan", "hdbscan"),
        help="hdbscan needs no --eps, and scikit-learn (default: dbscan)",
    )
    parser.add_argument("--eps", type=float, help="of dbscan: Jaccard distance of neighbours (default: 0.6)")
    parser.add_argument("--min-samples", type=int, help="neighbours that make the core of a cluster (default: 4)")
    parser.add_argument(
        "--graph",
        metavar="FILE",
        type=path,
        help="of --rerank and --cluster: keep the nearest neighbours there, go on from them, use them again",
    )
    parser.add_argument(
        "--neighbours",
        metavar="FACTORY",
        help="of --rerank and --cluster: find the nearest neighbours by this faiss index, not all; tells their recall",
    )
    parser.add_argument("--neighbour-parameters", metavar="TEXT", help="of that index, such as nprobe=32")
    parser.add_argument(
        "--definitions", action="store_true", help="also the mAP under each definition in use, and who reports it"
    )
    parser.add_argument("--max-rank", type=int, default=50, help="length of the CMC curve (default: 50)")
    parser.add_argument(
        "--fpr",
        metavar="RATE",
        type=float,
        action="append",
        help="also the true-accept rate and the distance threshold at this false-accept rate; may be repeated",
    )
    parser.add_argument("--cuhk03", action="store_true", help="CUHK03's single-gallery-shot protocol")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one and use_gpu is true")
    parser.add_argument("--json", metavar="FILE", type=path, help="write all figures")
    parser.add_argument("--save-features", metavar="FILE.npz", type=path, help="write the features (one dataset only)")
    parser.add_argument("--topk-csv", metavar="FILE", type=path, help="write the nearest gallery items of each query")
    parser.add_argument("--topk", type=int, help="how many of them (default: 10)")
    parser.add_argument(
        "--report", metavar="FILE", type=path, help="write a page, *.html: ranks, thresholds, cameras, hardest queries"
    )
    parser.add_argument(
        "--embed-images", type=int, metavar="N", help="put the images of the N hardest queries into it (default: 0)"
    )


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", type=path, required=True, help="with train/CLASS/… and val/CLASS/…")
    parser.add_argument("--genotype", metavar="PRESET|JSON", type=path, default="retrieval", help="default: retrieval")
    parser.add_argument("--output", metavar="DIR", type=path, default="log/pretrain", help="default: log/pretrain")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        choices=("latest", "auto"),
        help="go on from the newest whole checkpoint in the output folder; auto: or begin, if there is none yet",
    )
    numbers: list[tuple[str, type, Any, str]] = [
        ("channels", int, 64, "C of the first stage"),
        ("parts", int, 4, "stripes of the part-aware operation"),
        ("epochs", int, 250, "epochs in all"),
        ("batch-size", int, 256, "images of a step over all processes"),
        ("lr", float, 0.1, "learning rate of SGD with momentum 0.9"),
        ("weight-decay", float, 3e-5, "weight decay"),
        ("label-smooth", float, 0.1, "label smoothing"),
        ("auxiliary-weight", float, 0.4, "of the auxiliary classifier; 0: none"),
        ("drop-path", float, 0.0, "probability of dropping a branch"),
        ("grad-clip", float, 5.0, "largest norm of the gradient; 0: off"),
        ("size", int, 224, "side of the square input in pixels"),
        ("workers", int, 4, "loader processes of each process"),
        ("seed", int, 1, "seed"),
    ]
    for name, kind, default, text in numbers:
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument(
        "--warmup-epochs",
        type=int,
        metavar="N",
        help="epochs in which the learning rate rises (default: 5, and fewer than --epochs)",
    )
    parser.add_argument("--layers", type=int, nargs=4, default=[2, 2, 2, 2], metavar="L", help="cells in each stage")
    parser.add_argument("--cpu", action="store_true", help="leave the GPUs alone")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="FILE", type=path, required=True, help="a checkpoint or a state dict")
    parser.add_argument("--format", choices=("onnx", "torchscript"), help="default: as --output ends")
    parser.add_argument("--output", metavar="FILE", type=path, required=True, help="where the network goes")
    parser.add_argument("--normalize", action="store_true", help="give features of length 1")


def _add_gallery(parser: argparse.ArgumentParser) -> None:
    actions = ("build", "add", "remove", "calibrate", "query", "serve")
    parser.add_argument("action", choices=actions, help="what to do with the gallery")
    parser.add_argument("folder", metavar="FOLDER", type=path, help="of the gallery")
    parser.add_argument("--images", metavar="DIR", type=path, help="crops: to enrol, of a cohort, or to ask for")
    parser.add_argument("--weights", metavar="FILE", type=path, help="the network: a checkpoint of train, or *.onnx")
    parser.add_argument("--features", metavar="FILE", type=path, help="instead of images, as of evaluate")
    parser.add_argument("--pids", metavar="PERSON", nargs="+", help="who to remove")
    parser.add_argument("--far", type=float, metavar="RATE", help="of calibrate: false-accept rate (default: 0.01)")
    parser.add_argument("--threshold", type=float, metavar="S", help="of query, serve (default: the calibrated one)")
    parser.add_argument("--top", type=int, metavar="N", help="of query, serve: people to rank (default: 5)")
    parser.add_argument("--csv", metavar="FILE", type=path, help="of query: write the answer here")
    parser.add_argument("--port", type=int, metavar="N", help="of serve: of the page (default: 8000; 0: a free one)")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="*", metavar="DIR", type=path, help="data.save_dir of a search, or of several")
    parser.add_argument(
        "--log-dir", dest="log_dirs", action="append", default=[], metavar="DIR", type=path, help="the same as DIR"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=path, help="the page, *.html (default: DIR/report.html; of several: needed)"
    )
    parser.add_argument(
        "--trained",
        action="append",
        default=[],
        metavar="DIR",
        type=path,
        help="data.save_dir of a training of the genotype found, for the report of one search; may be repeated",
    )
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="DIR",
        type=path,
        help="data.save_dir of a training of another network, to be put beside these; may be repeated",
    )
    parser.add_argument(
        "--embed-images", type=int, metavar="N", help="put the images of N queries into the page, the worst first"
    )
    parser.add_argument(
        "--serve", action="store_true", help="show the page on this machine, and follow a running search"
    )
    parser.add_argument("--port", type=int, metavar="PORT", help="of --serve (default: a free one)")


def _check_train(cfg: CfgNode, args: argparse.Namespace) -> None:
    if args.genotype and not cfg.model.name.startswith("autoreid"):
        raise UserError(
            f"--genotype {args.genotype} is for our own network, and model.name is {cfg.model.name}; "
            "set model.name autoreid"
        )
    check_train_config(cfg, given=args.opts[::2])


@dataclass(frozen=True)
class Command:
    """A command as it is typed.

    Attributes:
        summary: a sentence.
        epilog: examples, and what it reads and writes.
        add_options: adds its own options to a parser.
        configured: whether it reads the configuration, and so takes torchreid's options and ``KEY VALUE`` pairs.
        check: refuses a configuration that the command cannot follow, and completes it from the options.
    """

    summary: str
    epilog: str
    add_options: Callable[[argparse.ArgumentParser], None]
    configured: bool = True
    check: Callable[[CfgNode, argparse.Namespace], None] = lambda cfg, args: None


#: name -> command; the module of that name runs it
COMMANDS = {
    "search": Command(
        "Searches a network architecture for person re-identification (Auto-ReID, ICCV 2019).",
        _SEARCH,
        _add_search,
        check=lambda cfg, args: check_search_config(cfg, given=args.opts[::2]),
    ),
    "train": Command(
        "Trains the network of a genotype, or any other model of torchreid, and tests it.",
        _TRAIN,
        _add_train,
        check=_check_train,
    ),
    "evaluate": Command(
        "Evaluates person retrieval, exactly and at any size: mAP, CMC, mINP, with re-ranking if asked.",
        _EVALUATE,
        _add_evaluate,
        check=lambda cfg, _: check_test_config(cfg),
    ),
    "pretrain": Command(
        "Pre-trains the network of a genotype on ImageNet, or on any folder of images by class.",
        _PRETRAIN,
        _add_pretrain,
        configured=False,
    ),
    "export": Command(
        "Writes a trained network as ONNX or TorchScript, compared with PyTorch, for use without this package.",
        _EXPORT,
        _add_export,
        check=lambda cfg, _: check_test_config(cfg),
    ),
    "gallery": Command(
        "Keeps a gallery of people on disk, and says who a query is, or that it is nobody enrolled.",
        _GALLERY,
        _add_gallery,
        configured=False,
    ),
    "report": Command(
        "Writes the report of a search, or a comparison of several: one HTML page, from their log folders.",
        _REPORT,
        _add_report,
        configured=False,
    ),
}


def parse(name: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command; ``cfg`` is the configuration that they stand for, checked.

    ``given`` has the keys that somebody has given; with ``--resume`` the others are those of ``checkpoint``.

    Raises:
        UserError: if the configuration cannot be read or followed.
        SystemExit: if an option is wrong, or only ``--help`` was asked for.

    >>> parse("search", ["--root", "data", "sampler.train_sampler", "RandomIdentitySampler"]).cfg.data.root
    'data'
    """
    command = COMMANDS[name]
    parser = (
        base_parser(command.summary, command.epilog)
        if command.configured
        else Parser(
            description=command.summary, epilog=command.epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
    )
    parser.prog = f"autoreid {name}"
    command.add_options(parser)
    args = parser.parse_args(argv)
    if command.configured:
        args.cfg, args.given = given_config(args)
        if getattr(args, "genotype", ""):
            args.cfg.autoreid.genotype = args.genotype
            args.given.add("autoreid.genotype")
        args.checkpoint = args.resumed_genotype = None
        if getattr(args, "resume", ""):
            from .origin import find_checkpoint  # which takes long to import

            args.checkpoint, args.resumed_genotype = find_checkpoint(args.resume, args.cfg, args.given, name)
        command.check(args.cfg, args)
    return args
