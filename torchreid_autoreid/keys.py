"""The table of keys: of each one the default, what it may be, who reads it, and whether a resumed run may change it.

All else follows from it: the yacs tree, the checks of a configuration, and those of the arguments that keys become
(``limits.py``). torchreid keeps its own tree in a script (``scripts/default_config.py``), not in its package; a test
compares ours with that script and with the signatures of the callables that the keys end up in.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

__all__ = [
    "KEYS",
    "MIXED",
    "OF_CANDIDATES",
    "OF_ONE_RUNG",
    "WITH_ALPHAS",
    "Configuration",
    "Key",
    "Range",
    "default_tree",
]

# Above these a value is a slip, and would end in a computer out of memory.
MOST_SIZE, MOST_CHANNELS, MOST_CELLS, MOST_COUNT = 8192, 4096, 64, 1_000_000
#: of a rate or a factor; PyTorch computes in float32, which ends at 3.4e38
MOST = 1e30


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Range:
    """Of a number, or of each number of a list; strictly more or less if ``above`` or ``below``.

    Attributes:
        count: how many numbers a list has; 0: any number but none.
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False
    count: int = 0

    def __contains__(self, value: Any) -> bool:
        if not _is_number(value):
            return False
        high = value < self.most if self.below else value <= self.most
        return bool(high and (value > self.least if self.above else value >= self.least))

    def __str__(self) -> str:
        bounds = f"{'above' if self.above else 'at least'} {self.least}"
        return bounds + (f" and {'below' if self.below else 'at most'} {self.most}" if self.most < math.inf else "")


@dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
        default: with the type that all its values have.
        allowed: the range of a number, or of each number of a list; or the values to choose from; ``None``: any.
        of: another key -> the values of it with which this one is read; with several keys, one of them is enough.
        above_zero: another key, above 0 where this one is read.
        free: whether a resumed run may change it: what the run ends with does not depend on it, or no longer does.
        by_recipe: whether the networks that a search trains from scratch take it from ``search.recipe``.
        unused_in_search, unused_in_training: why nothing reads it there, and what to use instead; empty: it is read.
    """

    default: Any
    allowed: Range | tuple[Any, ...] | None = None
    of: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    above_zero: str = ""
    free: bool = False
    by_recipe: bool = False
    unused_in_search: str = ""
    unused_in_training: str = ""


def key(
    default: Any,
    allowed: Range | tuple[Any, ...] | None = None,
    *,
    of: Mapping[str, tuple[Any, ...]] | None = None,
    above_zero: str = "",
    free: bool = False,
    by_recipe: bool = False,
    search: str = "",
    training: str = "",
) -> Any:
    """The field of a section; the arguments are those of :class:`Key`."""
    made = Key(default, allowed, of or {}, above_zero, free, by_recipe, search, training)
    return field(
        default_factory=lambda: list(default) if isinstance(default, list) else default, metadata={"key": made}
    )


POSITIVE, NOT_NEGATIVE, SHARE = Range(0, MOST, above=True), Range(0, MOST), Range(0, 1, below=True)
PART = Range(0, 1, above=True, below=True)
COUNT, COUNT_OR_NONE, MANY = Range(1, MOST_COUNT), Range(0, MOST_COUNT), Range(1, 1 << 16)

# Strategies that mix all operations of an edge; those that have alphas at all; those that train derived networks, by a
# recipe of their own, in one rung or in several.
MIXED = ("darts", "pc_darts", "drnas")
WITH_ALPHAS = (*MIXED, "gdas")
OF_ONE_RUNG = ("random", "predictor")
OF_RUNGS = ("halving", "evolution")
OF_CANDIDATES = (*OF_ONE_RUNG, *OF_RUNGS)
# What candidates may be ranked by: figures of retrieval, with their names for people.
RANKED_BY = {"mAP": "mAP", "auc": "AUC"}


def with_strategy(*names: str) -> dict[str, tuple[str, ...]]:
    """Read with these strategies only."""
    return {"search.strategy": names}


CANDIDATES = with_strategy(*OF_CANDIDATES) | {"search.selection": ("halving",)}
# Read where the alphas' strengths derive a genotype.
DERIVED = {"search.selection": ("strength", "halving")}
HALVING = with_strategy(*OF_RUNGS) | {"search.selection": ("halving",)}


@dataclass(frozen=True)
class Model:
    """The network."""

    name: str = key("resnet50", search="it builds the search network")
    # load ImageNet weights if available
    pretrained: bool = key(True, free=True, search="it starts from random weights")
    # path to model weights
    load_weights: str = key("", free=True, search="use --resume")
    # path to a checkpoint to resume training from
    resume: str = key("", search="use --resume", training="use --resume")


@dataclass(frozen=True)
class Data:
    """The images."""

    type: str = key("image", search="it is for images", training="it is for images")
    root: str = key("reid-data", free=True)
    sources: list[str] = key(["market1501"])
    targets: list[str] = key(["market1501"], free=True)
    # loader processes
    workers: int = key(4, Range(0, 1024), free=True)
    split_id: int = key(0, COUNT_OR_NONE)
    # pixels
    height: int = key(256, Range(1, MOST_SIZE))
    width: int = key(128, Range(1, MOST_SIZE))
    # train on train, query and gallery
    combineall: bool = key(False)
    transforms: list[str] = key(
        ["random_flip"], ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase")
    )
    # augmentations of an image in a batch
    k_tfm: int = key(
        1,
        search="it draws one augmentation of an image",
        training="torchreid's engines for images take one augmentation of an image",
    )
    # ImageNet
    norm_mean: list[float] = key([0.485, 0.456, 0.406], Range(-1e6, 1e6, count=3))
    norm_std: list[float] = key([0.229, 0.224, 0.225], Range(1e-6, 1e6, count=3))
    # log folder
    save_dir: str = key("log", free=True)
    load_train_targets: bool = key(
        False,
        search="it trains on data.sources only",
        training="torchreid's engines for images train on data.sources only",
    )


@dataclass(frozen=True)
class Market1501:
    """Of one dataset."""

    use_500k_distractors: bool = key(
        False, search="it retrieves in the held-out half of the training set; use evaluate.py"
    )


@dataclass(frozen=True)
class CUHK03:
    """Of one dataset."""

    # hand-labelled boxes; else detected ones
    labeled_images: bool = key(False)
    classic_split: bool = key(False)
    # single-gallery-shot
    use_metric_cuhk03: bool = key(
        False, search="it retrieves in the held-out half by the protocol of Market-1501; use evaluate.py"
    )


@dataclass(frozen=True)
class Sampler:
    """How batches are drawn."""

    train_sampler: str = key(
        "RandomSampler",
        ("RandomSampler", "SequentialSampler", "RandomIdentitySampler", "RandomDomainSampler", "RandomDatasetSampler"),
    )
    train_sampler_t: str = key(
        "RandomSampler", search="it trains on data.sources only", training="it trains on data.sources only"
    )
    # K images an identity, for RandomIdentitySampler
    num_instances: int = key(4, MANY)
    # for RandomDomainSampler
    num_cams: int = key(
        1, MANY, of={"sampler.train_sampler": ("RandomDomainSampler",)}, search="it samples by identity"
    )
    # for RandomDatasetSampler
    num_datasets: int = key(
        1, MANY, of={"sampler.train_sampler": ("RandomDatasetSampler",)}, search="it samples by identity"
    )


@dataclass(frozen=True)
class Video:
    """Of video datasets."""

    seq_len: int = key(15, search="it is for images", training="it is for images")
    sample_method: str = key("evenly", search="it is for images", training="it is for images")
    pooling_method: str = key("avg", search="it is for images", training="it is for images")


@dataclass(frozen=True)
class Train:
    """How a network is trained."""

    optim: str = key("adam", ("adam", "amsgrad", "sgd", "rmsprop", "radam"), by_recipe=True)
    lr: float = key(0.0003, POSITIVE, by_recipe=True)
    weight_decay: float = key(5e-4, NOT_NEGATIVE, by_recipe=True)
    # in search.py: of the search
    max_epoch: int = key(60, COUNT)
    start_epoch: int = key(0, search="use --resume", training="use --resume")
    # images of a step; under torchrun of all processes together
    batch_size: int = key(32, Range(2, 1 << 20))  # a batch norm takes statistics
    # epochs that train open_layers only
    fixbase_epoch: int = key(0, Range(0, MOST_COUNT), search="use search.warmup_epochs to freeze the alphas")
    open_layers: list[str] = key(["classifier"], above_zero="train.fixbase_epoch", search="it trains all weights")
    staged_lr: bool = key(False, search="all weights have one learning rate, train.lr")
    new_layers: list[str] = key(
        ["classifier"], of={"train.staged_lr": (True,)}, search="all weights have one learning rate, train.lr"
    )
    base_lr_mult: float = key(
        0.1, NOT_NEGATIVE, of={"train.staged_lr": (True,)}, search="all weights have one learning rate, train.lr"
    )
    lr_scheduler: str = key("single_step", ("single_step", "multi_step", "cosine"), by_recipe=True)
    # epochs
    stepsize: list[int] = key([20], COUNT, of={"train.lr_scheduler": ("single_step", "multi_step")}, by_recipe=True)
    gamma: float = key(0.1, NOT_NEGATIVE, of={"train.lr_scheduler": ("single_step", "multi_step")}, by_recipe=True)
    # batches
    print_freq: int = key(20, COUNT, free=True)
    seed: int = key(1, Range(0, 2**32 - 1))


@dataclass(frozen=True)
class SGD:
    """Of one optimiser."""

    # of sgd and rmsprop
    momentum: float = key(0.9, SHARE, of={"train.optim": ("sgd", "rmsprop")}, by_recipe=True)
    dampening: float = key(0.0, Range(0, 1), of={"train.optim": ("sgd",)}, by_recipe=True)
    nesterov: bool = key(False, of={"train.optim": ("sgd",)}, by_recipe=True)


@dataclass(frozen=True)
class RMSprop:
    """Of one optimiser."""

    alpha: float = key(0.99, SHARE, of={"train.optim": ("rmsprop",)}, by_recipe=True)


@dataclass(frozen=True)
class Adam:
    """Of some optimisers."""

    beta1: float = key(0.9, SHARE, of={"train.optim": ("adam", "amsgrad", "radam")}, by_recipe=True)
    beta2: float = key(0.999, SHARE, of={"train.optim": ("adam", "amsgrad", "radam")}, by_recipe=True)


@dataclass(frozen=True)
class Softmax:
    """The cross-entropy."""

    label_smooth: bool = key(True, by_recipe=True)


@dataclass(frozen=True)
class Triplet:
    """The triplet loss."""

    # in units of the feature distance (in a search: open; the field's usual value)
    margin: float = key(0.3, NOT_NEGATIVE, by_recipe=True)
    weight_t: float = key(
        1.0, NOT_NEGATIVE, of={"loss.name": ("triplet",)}, search="use search.loss_lambda", by_recipe=True
    )
    weight_x: float = key(
        0.0, NOT_NEGATIVE, of={"loss.name": ("triplet",)}, search="use search.loss_lambda", by_recipe=True
    )


@dataclass(frozen=True)
class Loss:
    """What a training minimises."""

    name: str = key("softmax", ("softmax", "triplet"), search="it uses the retrieval loss", by_recipe=True)
    softmax: Softmax = Softmax()
    triplet: Triplet = Triplet()


@dataclass(frozen=True)
class Test:
    """How retrieval is tested."""

    batch_size: int = key(100, Range(1, 1 << 20), free=True)
    # or cosine
    dist_metric: str = key("euclidean", ("euclidean", "cosine"), free=True, by_recipe=True)
    normalize_feature: bool = key(False, free=True, by_recipe=True)
    ranks: list[int] = key([1, 5, 10, 20], Range(1, 1 << 20), free=True, search="its log has ranks 1, 5 and 10")
    # test only
    evaluate: bool = key(False, free=True, search="use evaluate.py")
    # epochs between tests; -1: after training only. In search.py: tests of the held-out half
    eval_freq: int = key(-1, Range(-1, MOST_COUNT), free=True)
    start_eval: int = key(0, COUNT_OR_NONE, free=True, search="use test.eval_freq")
    rerank: bool = key(False, free=True, search="use evaluate.py")
    visrank: bool = key(False, free=True, search="use evaluate.py")
    visrank_topk: int = key(10, Range(1, 1000), of={"test.visrank": (True,)}, free=True, search="use evaluate.py")


@dataclass(frozen=True)
class AutoReID:
    """Ours: the network."""

    # preset name or path of a JSON file
    genotype: str = key("retrieval", search="it finds one; train.py takes one")
    # C of the first stage; doubles with every stage
    channels: int = key(64, Range(1, MOST_CHANNELS))
    # L, cells in each of the four stages
    layers: list[int] = key([2, 2, 2, 2], Range(1, MOST_CELLS, count=4))
    # B, blocks of a cell, in a search; a genotype brings its own
    blocks: int = key(4, Range(1, 16), training="a genotype brings its own")
    # M, stripes of the part-aware operation
    parts: int = key(4, Range(1, 64))
    # probability, of the derived network in training
    drop_path: float = key(0.0, SHARE, search="train.py takes it")
    # of the fourth stage of the derived network; 1: "Bag of Tricks" (CVPRW 2019)
    last_stride: int = key(2, (1, 2), search="train.py takes it")
    # batch norm and ReLU before the pooling; false: the paper's form
    last_norm: bool = key(True)
    # of an auxiliary classifier on the third stage in training; 0: none
    auxiliary_weight: float = key(0.0, NOT_NEGATIVE, search="train.py takes it")
    # file with ImageNet weights of the derived network, for model.pretrained
    pretrained: str = key("", of={"model.pretrained": (True,)}, free=True, search="it starts from random weights")


@dataclass(frozen=True)
class Recipe:
    """Ours: how a training goes, beyond torchreid's keys."""

    unused_in_search: ClassVar[str] = "train.py takes it"

    # in which the learning rate rises linearly
    warmup_epochs: int = key(0, COUNT_OR_NONE)
    # share of the learning rate to begin with
    warmup_factor: float = key(0.1, Range(0, 1, above=True), above_zero="recipe.warmup_epochs")
    # where the cosine of train.lr ends
    min_lr: float = key(0.0, NOT_NEGATIVE, of={"train.lr_scheduler": ("cosine",)})
    # largest norm of the gradient; 0: off
    grad_clip: float = key(0.0, NOT_NEGATIVE)
    # batch-norm neck; the feature of testing is taken ``before`` or ``after`` it
    neck: str = key("none", ("none", "before", "after"))
    # of a moving average of the weights, which is what is tested and saved; 0: off
    ema_decay: float = key(0.0, SHARE)
    # mixed precision: none, bfloat16 or float16 (on a GPU)
    amp: str = key("none", ("none", "bfloat16", "float16"))
    # under torchrun: statistics of the batches of all processes
    sync_batch_norm: bool = key(True)
    # the feature of testing is the mean over an image and its mirror image
    flip_test: bool = key(False)
    # share of training identities kept for choosing the best epoch; 0: the targets choose
    held_out: float = key(0.0, SHARE)
    # 1: latest, the one before, and the best; N: the newest N by number too; 0: best only
    keep_last: int = key(1, COUNT_OR_NONE, free=True)


@dataclass(frozen=True)
class Budget:
    """Ours: the largest network that a search may derive, without its classifier; 0: no limit."""

    # parameters, in numbers: 5.0e+6
    params: float = key(0.0, NOT_NEGATIVE)
    # multiply-adds an image, in numbers: 1.2e+9
    macs: float = key(0.0, NOT_NEGATIVE)
    # milliseconds an image, on this machine (the GPU if it is used)
    latency_ms: float = key(0.0, NOT_NEGATIVE)
    # latency.json of an earlier search; empty: measure
    latency_table: str = key("")
    # The network that the limits hold for: the one to be trained, which is wider than the search network.
    channels: int = key(64, Range(1, MOST_CHANNELS))
    layers: list[int] = key([2, 2, 2, 2], Range(1, MOST_CELLS, count=4))
    # of its input; 0: data.height
    height: int = key(0, Range(0, MOST_SIZE))
    # 0: data.width
    width: int = key(0, Range(0, MOST_SIZE))
    last_stride: int = key(2, (1, 2))


@dataclass(frozen=True)
class Search:
    """Ours: the search (Auto-ReID, section 3; "open": not published, so the default is our choice)."""

    unused_in_training: ClassVar[str] = "search.py takes it"

    # How alphas weigh the operations of an edge: darts (ICLR 2019), gdas (CVPR 2019), pc_darts (ICLR 2020), drnas (ICLR
    # 2021); space/strategies.py says more of each. Or what trains derived networks and learns no alphas: random draws
    # genotypes, trains each and keeps the best (Li and Talwalkar, UAI 2019), predictor lets what all of them say of an
    # operation choose the next one and the answer (search/predictor.py), halving trains many for a moment and the
    # better ones for longer (Jamieson and Talwalkar, AISTATS 2016), evolution mutates the better ones of a population
    # and lets the best go through halving (Real et al., AAAI 2019). darts, which is Auto-ReID's own, is the default;
    # what decides among the networks that its alphas propose is search.selection.
    strategy: str = key("darts", (*WITH_ALPHAS, *OF_CANDIDATES))
    # of the alphas' gradient: 1 or 2 (DARTS, section 2.3); the paper's tables do not say (open)
    order: int = key(1, (1, 2), of=with_strategy(*MIXED))
    # reid: the paper's seven operations; standard: without part_aware, the paper's ablation
    space: str = key("reid", ("reid", "standard"))
    # image: every identity in both halves (published); identity: in one (MSINet, CVPR 2023)
    split: str = key("image", ("image", "identity"), of=with_strategy(*WITH_ALPHAS))
    # share of the training set that trains the alphas
    alpha_fraction: float = key(0.5, PART, of=with_strategy(*WITH_ALPHAS))
    # What the alphas minimise: scale_free, the retrieval loss on features and logits of a fixed scale, so that no
    # operation wins by changing it; or published, the paper's loss as it is.
    alpha_loss: str = key("scale_free", ("scale_free", "published"), of=with_strategy(*WITH_ALPHAS))
    # of Adam, constant (Auto-ReID: 0.02); 0: the strategy's own, more if the search is short
    alpha_lr: float = key(0.0, NOT_NEGATIVE, of=with_strategy(*WITH_ALPHAS))
    # of Adam; a second of 0: 0.999, less if the search is short
    alpha_betas: list[float] = key([0.5, 0.0], Range(0, 1, below=True, count=2), of=with_strategy(*WITH_ALPHAS))
    # of Adam
    alpha_weight_decay: float = key(5e-5, NOT_NEGATIVE, of=with_strategy(*WITH_ALPHAS))
    # where the cosine of train.lr ends
    min_lr: float = key(0.001, NOT_NEGATIVE, of={"train.lr_scheduler": ("cosine",)})
    # largest norm of the gradient of w; 0: off (open; DARTS's value)
    grad_clip: float = key(5.0, NOT_NEGATIVE, of=with_strategy(*WITH_ALPHAS))
    # epochs with the alphas frozen; -1: 30 % of them (PC-DARTS, section 4.2; open)
    warmup_epochs: int = key(-1, Range(-1, MOST_COUNT), of=with_strategy(*WITH_ALPHAS))
    # epochs from one use of the alpha half to the next; the w half stands in between
    real_alpha_every: int = key(1, COUNT, of=with_strategy(*WITH_ALPHAS))
    # share of the cross-entropy in the retrieval loss, 0 to 1 (open)
    loss_lambda: float = key(0.5, Range(0, 1), of=with_strategy(*WITH_ALPHAS))
    # edge strengths without the mass of ``none``; published: with it
    derive_renormalised: bool = key(False, of=DERIVED)
    # mixed precision: none, bfloat16 or float16 (on a GPU)
    amp: str = key("none", ("none", "bfloat16", "float16"))
    # under torchrun: mean or sum of the gradients of all processes
    grad_sync: str = key("mean", ("mean", "sum"))
    # under torchrun: statistics of the batches of all processes
    sync_batch_norm: bool = key(True)
    # epochs between checkpoints that are kept; 0: latest and best only
    checkpoint_every: int = key(0, COUNT_OR_NONE, free=True)
    # a cell at a time in memory, for one more forward pass in time
    activation_checkpointing: bool = key(False, of=with_strategy(*WITH_ALPHAS))
    # of one strategy
    # of gdas: temperature at the first epoch (GDAS, section 4.1), from there linearly to
    tau_start: float = key(10.0, POSITIVE, of=with_strategy("gdas"))
    # of gdas: temperature at the last epoch
    tau_end: float = key(0.1, POSITIVE, of=with_strategy("gdas"))
    # of pc_darts: K, of which 1/K of the channels is searched (PC-DARTS, section 3.2)
    partial_channels: int = key(4, Range(1, MOST_CHANNELS), of=with_strategy("pc_darts"))
    # of drnas: of its regulariser in the loss of the alphas (DrNAS, section 2)
    dirichlet_weight: float = key(0.001, NOT_NEGATIVE, of=with_strategy("drnas"))
    # of random, predictor, halving and evolution, which train derived networks
    # the training whose optimiser, rate, loss, neck and drop path they have
    recipe: str = key("autoreid_train.yaml", of=CANDIDATES)
    # share of the training identities that they are ranked on, and never trained on
    held_out: float = key(0.25, PART, of=CANDIDATES)
    # The figure that they are ranked by: mAP, or auc, the probability that an image of one of these identities is
    # nearer to another one of the same than to one of another identity.
    rank_by: str = key("mAP", tuple(RANKED_BY), of=CANDIDATES)
    # A second objective: none, or params, macs or latency_ms of the network that search.budget describes. What goes on
    # is then the candidates that no other one beats in both, and pareto.json has those of the end.
    second_objective: str = key("none", ("none", "params", "macs", "latency_ms"), of=with_strategy(*OF_CANDIDATES))
    # of random, predictor and evolution: for each genotype; train.max_epoch is that of all. Candidates trained for one
    # to three epochs are no better than chance, wholly trained ones are (README, Results).
    candidate_epochs: int = key(5, COUNT, of=with_strategy(*OF_ONE_RUNG, "evolution"))
    # of halving: networks in each rung, of which the better ones go on (Jamieson and Talwalkar, AISTATS 2016), and for
    # how many epochs each has been trained at its end
    rung_candidates: list[int] = key([9, 3], of=HALVING)
    rung_epochs: list[int] = key([9, 27], of=HALVING)
    # An Optuna study, a file or a URL (sqlite:///…, mysql://…), on which all who are started with it work; "": none.
    study: str = key("", of=with_strategy(*OF_CANDIDATES), free=True)
    # of predictor: candidates that are drawn blindly before it chooses the others
    predictor_draws: int = key(12, Range(2, MOST_COUNT), of=with_strategy("predictor"))
    # of evolution: children and first draws in all, before the rungs
    evolution_candidates: int = key(100, COUNT, of=with_strategy("evolution"))
    # of evolution: how many live at a time; the oldest one dies (Real et al., section 3.1)
    population: int = key(16, COUNT, of=with_strategy("evolution"))
    # of evolution: how many of them are drawn for a parent, the best of them
    tournament: int = key(10, COUNT, of=with_strategy("evolution"))
    # against collapse; they combine, and 0 switches them off
    # beta of the auxiliary skip connection, from 1 linearly to 0 in DARTS− (section 3)
    auxiliary_skip: float = key(0.0, NOT_NEGATIVE, of=with_strategy(*MIXED))
    # of logsumexp(alpha) in the loss, from 0 linearly to, in β-DARTS (section 3), 50
    beta_weight: float = key(0.0, NOT_NEGATIVE, of=with_strategy("darts", "pc_darts", "gdas"))
    # after skip connections, decaying linearly to 0 (P-DARTS, section 3.3)
    skip_dropout: float = key(0.0, SHARE, of=with_strategy(*WITH_ALPHAS))
    # skip connections that a derived normal cell keeps, 2 in P-DARTS (section 3.3); -1: any
    skip_cap: int = key(-1, Range(-1, MOST_COUNT), of=DERIVED)
    # as many in the normal cell end the search, 2 in DARTS+ (2019, section 3.2)
    stop_at_skips: int = key(0, COUNT_OR_NONE, of=DERIVED)
    # the genotype at the end
    # halving: the derived genotype, draws from the alphas and a third drawn blindly are trained in rungs, and the
    # best is kept. Alphas alone have found no better networks than chance (README, Results), and strength is by
    # these alone (published); perturbation: by what is missed most (DARTS-PT, ICLR 2021).
    selection: str = key("halving", ("strength", "perturbation", "halving"), of=with_strategy(*WITH_ALPHAS))
    # of the alpha half, on which the loss without an operation is measured
    perturbation_batches: int = key(4, COUNT, of={"search.selection": ("perturbation",)})
    # of the weights after each choice
    perturbation_steps: int = key(10, Range(0, MOST_COUNT), of={"search.selection": ("perturbation",)})
    budget: Budget = Budget()


@dataclass(frozen=True)
class Configuration:
    """The whole tree, in the order in which it is written."""

    # where there is one
    use_gpu: bool = key(True, free=True)
    model: Model = Model()
    data: Data = Data()
    market1501: Market1501 = Market1501()
    cuhk03: CUHK03 = CUHK03()
    sampler: Sampler = Sampler()
    video: Video = Video()
    train: Train = Train()
    sgd: SGD = SGD()
    rmsprop: RMSprop = RMSprop()
    adam: Adam = Adam()
    loss: Loss = Loss()
    test: Test = Test()
    autoreid: AutoReID = AutoReID()
    recipe: Recipe = Recipe()
    search: Search = Search()


def default_tree() -> dict[str, Any]:
    """Sections and their keys as nested dictionaries, with all defaults."""
    return dataclasses.asdict(Configuration())


def _keys(section: Any, prefix: str = "", in_search: str = "", in_training: str = "") -> Iterator[tuple[str, Key]]:
    in_search = getattr(section, "unused_in_search", in_search)
    in_training = getattr(section, "unused_in_training", in_training)
    for one in fields(section):
        value, name = getattr(section, one.name), f"{prefix}{one.name}"
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{name}.", in_search, in_training)
            continue
        found: Key = one.metadata["key"]
        yield (
            name,
            dataclasses.replace(
                found,
                unused_in_search=found.unused_in_search or in_search,
                unused_in_training=found.unused_in_training or in_training,
            ),
        )


#: name -> key, in the order of the tree
KEYS: dict[str, Key] = dict(_keys(Configuration()))
