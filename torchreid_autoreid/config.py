"""The full yacs tree: every key of torchreid with its meaning and default, plus ``autoreid`` and ``search``.

torchreid keeps its tree in a script (``scripts/default_config.py``), not in its package; a test compares ours with that
script and with the signatures of the callables that the keys end up in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from .errors import UserError, short

__all__ = [
    "budget_limits",
    "check_search_config",
    "check_train_config",
    "engine_run_kwargs",
    "get_default_config",
    "imagedata_kwargs",
    "load_config",
    "lr_scheduler_kwargs",
    "network_kwargs",
    "optimizer_kwargs",
    "plain_yaml",
    "schedule_kwargs",
    "scheduler_kwargs",
    "search_kwargs",
    "searchdata_kwargs",
    "settings_of_result",
    "shape_kwargs",
    "traindata_kwargs",
]

_MAX_FILE_BYTES = 1 << 16  # a configuration has a few kilobytes
_MAX_WHOLE = 1 << 53  # of whole numbers; what counts something larger than this is a mistake
_MAX_SIDE, _MAX_WORKERS = 8192, 1024  # pixels of an image, loader processes
_COMMAND_LINE = "the command line"


def get_default_config() -> CfgNode:
    """A fresh tree with all defaults."""
    cfg = CfgNode()
    cfg.use_gpu = True  # where there is one

    # model
    cfg.model = CfgNode()
    cfg.model.name = "resnet50"
    cfg.model.pretrained = True  # load ImageNet weights if available
    cfg.model.load_weights = ""  # path to model weights
    cfg.model.resume = ""  # path to a checkpoint to resume training from

    # data
    cfg.data = CfgNode()
    cfg.data.type = "image"
    cfg.data.root = "reid-data"
    cfg.data.sources = ["market1501"]
    cfg.data.targets = ["market1501"]
    cfg.data.workers = 4  # loader processes
    cfg.data.split_id = 0
    cfg.data.height = 256  # pixels
    cfg.data.width = 128
    cfg.data.combineall = False  # train on train, query and gallery
    cfg.data.transforms = ["random_flip"]
    cfg.data.k_tfm = 1  # augmentations of an image in a batch
    cfg.data.norm_mean = [0.485, 0.456, 0.406]  # ImageNet
    cfg.data.norm_std = [0.229, 0.224, 0.225]
    cfg.data.save_dir = "log"  # log folder
    cfg.data.load_train_targets = False

    # datasets
    cfg.market1501 = CfgNode()
    cfg.market1501.use_500k_distractors = False
    cfg.cuhk03 = CfgNode()
    cfg.cuhk03.labeled_images = False  # hand-labelled boxes; else detected ones
    cfg.cuhk03.classic_split = False
    cfg.cuhk03.use_metric_cuhk03 = False  # single-gallery-shot

    # sampler
    cfg.sampler = CfgNode()
    cfg.sampler.train_sampler = "RandomSampler"
    cfg.sampler.train_sampler_t = "RandomSampler"
    cfg.sampler.num_instances = 4  # K images an identity, for RandomIdentitySampler
    cfg.sampler.num_cams = 1  # for RandomDomainSampler
    cfg.sampler.num_datasets = 1  # for RandomDatasetSampler

    # video
    cfg.video = CfgNode()
    cfg.video.seq_len = 15
    cfg.video.sample_method = "evenly"
    cfg.video.pooling_method = "avg"

    # train
    cfg.train = CfgNode()
    cfg.train.optim = "adam"
    cfg.train.lr = 0.0003
    cfg.train.weight_decay = 5e-4
    cfg.train.max_epoch = 60  # in search.py: of the search
    cfg.train.start_epoch = 0
    cfg.train.batch_size = 32  # images of a step; under torchrun of all processes together
    cfg.train.fixbase_epoch = 0  # epochs that train open_layers only
    cfg.train.open_layers = ["classifier"]
    cfg.train.staged_lr = False
    cfg.train.new_layers = ["classifier"]
    cfg.train.base_lr_mult = 0.1
    cfg.train.lr_scheduler = "single_step"
    cfg.train.stepsize = [20]  # epochs
    cfg.train.gamma = 0.1
    cfg.train.print_freq = 20  # batches
    cfg.train.seed = 1

    # optimisers
    cfg.sgd = CfgNode()
    cfg.sgd.momentum = 0.9  # of sgd and rmsprop
    cfg.sgd.dampening = 0.0
    cfg.sgd.nesterov = False
    cfg.rmsprop = CfgNode()
    cfg.rmsprop.alpha = 0.99
    cfg.adam = CfgNode()
    cfg.adam.beta1 = 0.9
    cfg.adam.beta2 = 0.999

    # loss
    cfg.loss = CfgNode()
    cfg.loss.name = "softmax"
    cfg.loss.softmax = CfgNode()
    cfg.loss.softmax.label_smooth = True
    cfg.loss.triplet = CfgNode()
    cfg.loss.triplet.margin = 0.3  # in units of the feature distance (in a search: open; the field's usual value)
    cfg.loss.triplet.weight_t = 1.0
    cfg.loss.triplet.weight_x = 0.0

    # test
    cfg.test = CfgNode()
    cfg.test.batch_size = 100
    cfg.test.dist_metric = "euclidean"  # or cosine
    cfg.test.normalize_feature = False
    cfg.test.ranks = [1, 5, 10, 20]
    cfg.test.evaluate = False  # test only
    cfg.test.eval_freq = -1  # epochs between tests; -1: after training only. In search.py: tests of the held-out half
    cfg.test.start_eval = 0
    cfg.test.rerank = False
    cfg.test.visrank = False
    cfg.test.visrank_topk = 10

    # ours: the network
    cfg.autoreid = CfgNode()
    cfg.autoreid.genotype = "retrieval"  # preset name or path of a JSON file
    cfg.autoreid.channels = 64  # C of the first stage; doubles with every stage
    cfg.autoreid.layers = [2, 2, 2, 2]  # L, cells in each of the four stages
    cfg.autoreid.blocks = 4  # B, blocks of a cell, in a search; a genotype brings its own
    cfg.autoreid.parts = 4  # M, stripes of the part-aware operation
    cfg.autoreid.drop_path = 0.0  # probability, of the derived network in training
    cfg.autoreid.last_stride = 2  # of the fourth stage of the derived network; 1: "Bag of Tricks" (CVPRW 2019)
    cfg.autoreid.auxiliary_weight = 0.0  # of an auxiliary classifier on the third stage in training; 0: none
    cfg.autoreid.pretrained = ""  # file with ImageNet weights of the derived network, for model.pretrained

    # ours: how train.py trains, beyond torchreid's keys
    cfg.recipe = CfgNode()
    cfg.recipe.warmup_epochs = 0  # in which the learning rate rises linearly
    cfg.recipe.warmup_factor = 0.1  # share of the learning rate to begin with
    cfg.recipe.min_lr = 0.0  # where the cosine of train.lr ends
    cfg.recipe.grad_clip = 0.0  # largest norm of the gradient; 0: off
    cfg.recipe.neck = "none"  # batch-norm neck; the feature of testing is taken `before` or `after` it
    cfg.recipe.ema_decay = 0.0  # of a moving average of the weights, which is what is tested and saved; 0: off
    cfg.recipe.amp = "none"  # mixed precision: none, bfloat16 or float16 (on a GPU)
    cfg.recipe.sync_batch_norm = True  # under torchrun: statistics of the batches of all processes
    cfg.recipe.flip_test = False  # the feature of testing is the mean over an image and its mirror image
    cfg.recipe.held_out = 0.0  # share of training identities kept for choosing the best epoch; 0: the targets choose
    cfg.recipe.keep_last = 1  # 1: latest, the one before, and the best; N: the newest N by number too; 0: best only

    # ours: the search (Auto-ReID, section 3; "open": not published, so the default is our choice)
    cfg.search = CfgNode()
    # How alphas weigh the operations of an edge: darts (ICLR 2019), gdas (CVPR 2019), pc_darts (ICLR 2020), drnas (ICLR
    # 2021); strategies.py says more of each. Or random, which trains random genotypes for a short time and keeps the
    # best (Li and Talwalkar, UAI 2019): the default, because it found the best networks in the README's comparison. The
    # recipes in configs/ say darts, which is Auto-ReID's own.
    cfg.search.strategy = "random"
    cfg.search.order = 1  # of the alphas' gradient: 1 or 2 (DARTS, section 2.3); the paper's tables do not say (open)
    cfg.search.space = "reid"  # reid: the paper's seven operations; standard: without part_aware, the paper's ablation
    cfg.search.split = "image"  # image: every identity in both halves (published); identity: in one (MSINet, CVPR 2023)
    cfg.search.alpha_fraction = 0.5  # share of the training set that trains the alphas
    cfg.search.alpha_lr = 0.02  # of Adam, constant
    cfg.search.alpha_betas = [0.5, 0.999]  # of Adam
    cfg.search.alpha_weight_decay = 5e-5  # of Adam
    cfg.search.min_lr = 0.001  # where the cosine of train.lr ends
    cfg.search.grad_clip = 5.0  # largest norm of the gradient of w; 0: off (open; DARTS's value)
    cfg.search.warmup_epochs = 0  # epochs with the alphas frozen (open)
    cfg.search.real_alpha_every = 1  # epochs from one use of the alpha half to the next; the w half stands in between
    cfg.search.loss_lambda = 0.5  # share of the cross-entropy in the retrieval loss, 0 to 1 (open)
    cfg.search.derive_renormalised = False  # edge strengths without the mass of `none`; published: with it
    cfg.search.amp = "none"  # mixed precision: none, bfloat16 or float16 (on a GPU)
    cfg.search.grad_sync = "mean"  # under torchrun: mean or sum of the gradients of all processes
    cfg.search.sync_batch_norm = True  # under torchrun: statistics of the batches of all processes
    cfg.search.checkpoint_every = 0  # epochs between checkpoints that are kept; 0: latest and best only
    cfg.search.activation_checkpointing = False  # a cell at a time in memory, for one more forward pass in time
    # of one strategy
    cfg.search.tau_start = 10.0  # of gdas: temperature at the first epoch (GDAS, section 4.1), from there linearly to
    cfg.search.tau_end = 0.1  # of gdas: temperature at the last epoch
    cfg.search.partial_channels = 4  # of pc_darts: K, of which 1/K of the channels is searched (PC-DARTS, section 3.2)
    cfg.search.dirichlet_weight = 0.001  # of drnas: of its regulariser in the loss of the alphas (DrNAS, section 2)
    cfg.search.candidate_epochs = 1  # of random: epochs for each genotype; train.max_epoch is that of all together
    # against collapse; they combine, and 0 switches them off
    cfg.search.auxiliary_skip = 0.0  # beta of the auxiliary skip connection, from 1 linearly to 0 in DARTS− (section 3)
    cfg.search.beta_weight = 0.0  # of logsumexp(alpha) in the loss, from 0 linearly to, in β-DARTS (section 3), 50
    cfg.search.skip_dropout = 0.0  # after skip connections, decaying linearly to 0 (P-DARTS, section 3.3)
    cfg.search.skip_cap = -1  # skip connections that a derived normal cell keeps, 2 in P-DARTS (section 3.3); -1: any
    cfg.search.stop_at_skips = 0  # as many in the normal cell end the search, 2 in DARTS+ (2019, section 3.2)
    # the genotype at the end
    cfg.search.selection = "strength"  # of the alphas; or perturbation: by what is missed most (DARTS-PT, ICLR 2021)
    cfg.search.perturbation_batches = 4  # of the alpha half, on which the loss without an operation is measured
    cfg.search.perturbation_steps = 10  # of the weights after each choice

    # ours: the largest network that a search may derive, without its classifier; 0: no limit
    cfg.search.budget = CfgNode()
    cfg.search.budget.params = 0.0  # parameters, in numbers: 5.0e+6
    cfg.search.budget.macs = 0.0  # multiply-adds an image, in numbers: 1.2e+9
    cfg.search.budget.latency_ms = 0.0  # milliseconds an image, on this machine (the GPU if it is used)
    cfg.search.budget.latency_table = ""  # latency.json of an earlier search; empty: measure
    # The network that the limits hold for: the one to be trained, which is wider than the search network.
    cfg.search.budget.channels = 64
    cfg.search.budget.layers = [2, 2, 2, 2]
    cfg.search.budget.height = 0  # of its input; 0: data.height
    cfg.search.budget.width = 0  # 0: data.width
    cfg.search.budget.last_stride = 2
    return cfg


# -- reading ----------------------------------------------------------------------------------------------------------


def load_config(
    config_file: str = "",
    opts: Sequence[str] = (),
    *,
    root: str = "",
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    transforms: Sequence[str] | None = None,
) -> CfgNode:
    """The defaults, changed by a YAML file, then by the named options, then by ``KEY VALUE`` pairs.

    Sources without targets are the targets too.

    Raises:
        UserError: if a file is missing or is no YAML mapping, a key is unknown, or a value is of another type.

    >>> load_config(opts=["train.max_epoch", "3"]).train.max_epoch
    3
    """
    cfg = get_default_config()
    if config_file:
        _merge(cfg, _read_yaml(Path(config_file)), config_file)
    if root:
        cfg.data.root = root
    # Sources given alone are tested on too: the file's own targets are another dataset.
    for key, values in (("sources", sources), ("targets", targets or sources), ("transforms", transforms)):
        if values:
            cfg.data[key] = list(values)
    if len(opts) % 2:
        raise UserError(
            f"{_COMMAND_LINE}: keys and values come in pairs, and {short(opts[-1])} is alone; write KEY VALUE"
        )
    for name, text in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, name, _parse(cfg, name, text), _COMMAND_LINE)
    return cfg


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = sorted({str(file) for folder in (path.parent, Path("configs")) for file in folder.glob("*.yaml")})
        near = get_close_matches(str(path), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}" if known else "look in configs/"
        raise UserError(f"no configuration file {path}; {hint}")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, too many for a configuration; give a YAML file")
    try:
        content = plain_yaml(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line} is not plain YAML: {str(error.problem)[:200]}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not plain YAML: {' '.join(str(error).split())[:200]}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys with values, such as `train: {{max_epoch: 3}}`, not {short(content)}")
    return content


def plain_yaml(text: str) -> Any:
    """What a YAML text holds: numbers, texts, lists and mappings.

    Raises:
        yaml.YAMLError: if it is no YAML, has tags of Python, nests too deep, or uses anchors and aliases, of which a
            hundred bytes can unfold to any size.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # a tag on a text that does not fit it (`!!int x`) raises almost anything
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses aliases, and a key given twice, of which YAML would keep the last."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "it has an alias; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _merge(cfg: CfgNode, content: dict[Any, Any], where: str, prefix: str = "") -> None:
    for key, value in content.items():
        name = f"{prefix}{key if isinstance(key, str) else short(key)}"
        node = _lookup(cfg, name, where)
        if not isinstance(node, CfgNode):
            _set(cfg, name, value, where)
        elif isinstance(value, dict):
            _merge(cfg, value, where, f"{name}.")
        elif value is not None:  # a section whose keys are all commented out is empty
            raise UserError(f"{where}: {name} holds keys of its own ({', '.join(node)}), not {short(value)}")


def _parse(cfg: CfgNode, name: str, text: str) -> Any:
    """The value of a ``KEY VALUE`` pair: a text as it stands, anything else as YAML."""
    if isinstance(_lookup(cfg, name, _COMMAND_LINE), str):
        return text
    try:
        return plain_yaml(text)
    except yaml.YAMLError:
        raise UserError(f"{_COMMAND_LINE}: cannot read {short(text)}, the value of {name}; write it as YAML") from None


def _lookup(cfg: CfgNode, name: str, where: str) -> Any:
    node: Any = cfg
    for part in name.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            raise UserError(f"{where}: unknown key {short(name)}; {_similar(cfg, name)}")
        node = node[part]
    return node


def _similar(cfg: CfgNode, name: str) -> str:
    if name.startswith("-"):
        return "options such as --root go before the first KEY VALUE pair"
    keys = list(_keys(cfg))
    section, last = name.split(".", 1)[0], name.rsplit(".", 1)[-1]
    siblings = {key.rsplit(".", 1)[-1]: key for key in keys if key.startswith(f"{section}.")}
    near = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    near += [siblings[end] for end in get_close_matches(last, siblings, n=2)]
    if not siblings:
        near += get_close_matches(name, [*keys, *cfg], n=2)
    if near:
        return f"did you mean {' or '.join(dict.fromkeys(near))}?"
    return f"choose from {', '.join(siblings.values())}" if siblings else f"it must begin with one of {', '.join(cfg)}"


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield from _keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [f"{prefix}{key}"]


def _set(cfg: CfgNode, name: str, value: Any, where: str) -> None:
    old = _lookup(cfg, name, where)
    if isinstance(old, CfgNode):
        raise UserError(
            f"{where}: {name} holds keys of its own; set one of {', '.join(f'{name}.{key}' for key in old)}"
        )
    section, _, key = name.rpartition(".")
    (_get(cfg, section) if section else cfg)[key] = _converted(name, value, old, where)


def _converted(name: str, value: Any, old: Any, where: str) -> Any:
    """The value in the type of the default. yacs would refuse an int for a float, and take anything for a list."""
    if isinstance(old, list):
        values = [_scalar(item, type(old[0])) for item in (value if isinstance(value, list) else [value])]
        if None in values:
            kind = _TYPE_NAMES[type(old[0])]
            raise UserError(f"{where}: {name} must be a list such as {old}, each item {kind}, not {short(value)}")
        return values
    converted = _scalar("" if value is None and isinstance(old, str) else value, type(old))
    if converted is None:
        quotes = "; put it in quotes" if isinstance(old, str) and not isinstance(value, list | dict) else ""
        raise UserError(f"{where}: {name} must be {_TYPE_NAMES[type(old)]}, not {short(value)}{quotes}")
    return converted


_TYPE_NAMES = {bool: "true or false", float: "a finite number", int: "a whole number", str: "a text"}


def _scalar(value: Any, wanted: type) -> Any:
    """``None`` where the value is of another type."""
    if wanted is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 5e-5, without a dot, as a text
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None
    if wanted is int and type(value) is int and abs(value) > _MAX_WHOLE:
        return None
    return value if type(value) is wanted else None


# -- cfg -> arguments -------------------------------------------------------------------------------------------------


def imagedata_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of ``torchreid.data.ImageDataManager``."""
    return {
        "root": cfg.data.root,
        "sources": cfg.data.sources,
        "targets": cfg.data.targets,
        "height": cfg.data.height,
        "width": cfg.data.width,
        "transforms": cfg.data.transforms,
        "k_tfm": cfg.data.k_tfm,
        "norm_mean": cfg.data.norm_mean,
        "norm_std": cfg.data.norm_std,
        "use_gpu": cfg.use_gpu,
        "split_id": cfg.data.split_id,
        "combineall": cfg.data.combineall,
        "load_train_targets": cfg.data.load_train_targets,
        "batch_size_train": cfg.train.batch_size,
        "batch_size_test": cfg.test.batch_size,
        "workers": cfg.data.workers,
        "num_instances": cfg.sampler.num_instances,
        "num_cams": cfg.sampler.num_cams,
        "num_datasets": cfg.sampler.num_datasets,
        "train_sampler": cfg.sampler.train_sampler,
        "train_sampler_t": cfg.sampler.train_sampler_t,
        "cuhk03_labeled": cfg.cuhk03.labeled_images,
        "cuhk03_classic_split": cfg.cuhk03.classic_split,
        "market1501_500k": cfg.market1501.use_500k_distractors,
    }


def searchdata_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.data.SearchDataManager`."""
    return imagedata_kwargs(cfg) | {
        "split": cfg.search.split,
        "alpha_fraction": cfg.search.alpha_fraction,
        "seed": cfg.train.seed,
    }


def optimizer_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of ``torchreid.optim.build_optimizer``."""
    return {
        "optim": cfg.train.optim,
        "lr": cfg.train.lr,
        "weight_decay": cfg.train.weight_decay,
        "momentum": cfg.sgd.momentum,
        "sgd_dampening": cfg.sgd.dampening,
        "sgd_nesterov": cfg.sgd.nesterov,
        "rmsprop_alpha": cfg.rmsprop.alpha,
        "adam_beta1": cfg.adam.beta1,
        "adam_beta2": cfg.adam.beta2,
        "staged_lr": cfg.train.staged_lr,
        "new_layers": cfg.train.new_layers,
        "base_lr_mult": cfg.train.base_lr_mult,
    }


def lr_scheduler_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of ``torchreid.optim.build_lr_scheduler``."""
    return {
        "lr_scheduler": cfg.train.lr_scheduler,
        "stepsize": cfg.train.stepsize,
        "gamma": cfg.train.gamma,
        "max_epoch": cfg.train.max_epoch,
    }


def scheduler_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :func:`~torchreid_autoreid.engine.build_scheduler` besides those of the warm-up."""
    values = lr_scheduler_kwargs(cfg)
    return {"name": values.pop("lr_scheduler"), **values}


def engine_run_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of ``torchreid.engine.Engine.run``."""
    return {
        "save_dir": cfg.data.save_dir,
        "max_epoch": cfg.train.max_epoch,
        "start_epoch": cfg.train.start_epoch,
        "fixbase_epoch": cfg.train.fixbase_epoch,
        "open_layers": cfg.train.open_layers,
        "start_eval": cfg.test.start_eval,
        "eval_freq": cfg.test.eval_freq,
        "test_only": cfg.test.evaluate,
        "print_freq": cfg.train.print_freq,
        "dist_metric": cfg.test.dist_metric,
        "normalize_feature": cfg.test.normalize_feature,
        "visrank": cfg.test.visrank,
        "visrank_topk": cfg.test.visrank_topk,
        "use_metric_cuhk03": cfg.cuhk03.use_metric_cuhk03,
        "ranks": cfg.test.ranks,
        "rerank": cfg.test.rerank,
    }


def network_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.networks.AutoReIDSearchNetwork`.

    A random search has no such network: whoever tests one without naming its strategy gets that of darts.
    """
    return {
        "channels": cfg.autoreid.channels,
        "layers": cfg.autoreid.layers,
        "blocks": cfg.autoreid.blocks,
        "parts": cfg.autoreid.parts,
        "space": cfg.search.space,
        "strategy": "darts" if cfg.search.strategy == "random" else cfg.search.strategy,
        "partial_channels": cfg.search.partial_channels,
        "activation_checkpointing": cfg.search.activation_checkpointing,
    }


def traindata_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.data.TrainDataManager`."""
    return imagedata_kwargs(cfg) | {"held_out": cfg.recipe.held_out, "seed": cfg.train.seed}


#: Beginnings of keys that may change when a run resumes: what it ends with does not depend on them, or, for the weights
#: to start from, no longer does.
_FREE_ON_RESUME = (
    "use_gpu",
    "data.root",
    "data.save_dir",
    "data.targets",
    "data.workers",
    "model.load_weights",
    "model.pretrained",
    "autoreid.pretrained",
    "recipe.keep_last",
    "search.checkpoint_every",
    "train.print_freq",
    "test.",
)


def settings_of_result(cfg: CfgNode) -> dict[str, Any]:
    """Key -> plain value of all that the result of a run depends on: what a resumed run must have in common.

    >>> settings_of_result(load_config(opts=["train.lr", "0.01"]))["train.lr"]
    0.01
    """
    # The cosine is stretched over all epochs.
    free = (*_FREE_ON_RESUME, *(() if cfg.train.lr_scheduler == "cosine" else ("train.max_epoch",)))
    return {name: _get(cfg, name) for name in _keys(cfg) if not name.startswith(free)}


def search_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.engine.ImageAutoReIDSearchEngine` besides its parts."""
    return {
        "order": cfg.search.order,
        "grad_clip": cfg.search.grad_clip,
        "warmup_epochs": cfg.search.warmup_epochs,
        "real_alpha_every": cfg.search.real_alpha_every,
        "derive_renormalised": cfg.search.derive_renormalised,
        "skip_cap": cfg.search.skip_cap,
        "stop_at_skips": cfg.search.stop_at_skips,
        "selection": cfg.search.selection,
        "perturbation_batches": cfg.search.perturbation_batches,
        "perturbation_steps": cfg.search.perturbation_steps,
        "checkpoint_every": cfg.search.checkpoint_every,
        "amp": cfg.search.amp,
        "grad_sync": cfg.search.grad_sync,
    }


def schedule_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.strategies.Schedule`."""
    return {
        "tau_start": cfg.search.tau_start,
        "tau_end": cfg.search.tau_end,
        "auxiliary_skip": cfg.search.auxiliary_skip,
        "beta_weight": cfg.search.beta_weight,
        "skip_dropout": cfg.search.skip_dropout,
        "dirichlet_weight": cfg.search.dirichlet_weight,
    }


def budget_limits(cfg: CfgNode) -> dict[str, float]:
    """The limits of :class:`~torchreid_autoreid.budget.Budget` that are set."""
    limits = {
        "params": cfg.search.budget.params,
        "macs": cfg.search.budget.macs,
        "latency_ms": cfg.search.budget.latency_ms,
    }
    return {name: limit for name, limit in limits.items() if limit}


def shape_kwargs(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of :class:`~torchreid_autoreid.cost.NetworkShape`: the network that a budget holds for."""
    return {
        "channels": cfg.search.budget.channels,
        "layers": tuple(cfg.search.budget.layers),
        "blocks": cfg.autoreid.blocks,
        "parts": cfg.autoreid.parts,
        "height": cfg.search.budget.height or cfg.data.height,
        "width": cfg.search.budget.width or cfg.data.width,
        "last_stride": cfg.search.budget.last_stride,
    }


# -- checks -----------------------------------------------------------------------------------------------------------

#: Keys of torchreid that a search has no use for, and what to use instead.
_UNUSED_IN_SEARCH = {
    "model.name": "it builds the search network",
    "model.pretrained": "it starts from random weights",
    "model.load_weights": "use --resume",
    "model.resume": "use --resume",
    "data.type": "it is for images",
    "data.load_train_targets": "it trains on data.sources only",
    "data.k_tfm": "it draws one augmentation of an image",
    "market1501.use_500k_distractors": "it retrieves in the held-out half of the training set; use evaluate.py",
    "cuhk03.use_metric_cuhk03": "it retrieves in the held-out half by the protocol of Market-1501; use evaluate.py",
    "sampler.train_sampler_t": "it trains on data.sources only",
    "sampler.num_cams": "it samples by identity",
    "sampler.num_datasets": "it samples by identity",
    "video.seq_len": "it is for images",
    "video.sample_method": "it is for images",
    "video.pooling_method": "it is for images",
    "train.start_epoch": "use --resume",
    "train.fixbase_epoch": "use search.warmup_epochs to freeze the alphas",
    "train.open_layers": "it trains all weights",
    "train.staged_lr": "all weights have one learning rate, train.lr",
    "train.new_layers": "all weights have one learning rate, train.lr",
    "train.base_lr_mult": "all weights have one learning rate, train.lr",
    "loss.name": "it uses the retrieval loss",
    "loss.triplet.weight_t": "use search.loss_lambda",
    "loss.triplet.weight_x": "use search.loss_lambda",
    "test.evaluate": "use evaluate.py",
    "test.start_eval": "use test.eval_freq",
    "test.ranks": "its log has ranks 1, 5 and 10",
    "test.rerank": "use evaluate.py",
    "test.visrank": "use evaluate.py",
    "test.visrank_topk": "use evaluate.py",
    "autoreid.genotype": "it finds one; train.py takes one",
    "autoreid.drop_path": "train.py takes it",
    "autoreid.last_stride": "train.py takes it",
    "autoreid.auxiliary_weight": "train.py takes it",
    "autoreid.pretrained": "it starts from random weights",
    **{f"recipe.{key}": "train.py takes it" for key in get_default_config().recipe},
}

#: Keys that a training has no use for.
_UNUSED_IN_TRAINING = {
    "model.resume": "use --resume",
    "data.type": "it is for images",
    "data.load_train_targets": "torchreid's engines for images train on data.sources only",
    "data.k_tfm": "torchreid's engines for images take one augmentation of an image",
    "sampler.train_sampler_t": "it trains on data.sources only",
    "video.seq_len": "it is for images",
    "video.sample_method": "it is for images",
    "video.pooling_method": "it is for images",
    "train.start_epoch": "use --resume",
    "autoreid.blocks": "a genotype brings its own",
    **dict.fromkeys(_keys(get_default_config().search, "search."), "search.py takes it"),
}

# Strategies that mix all operations of an edge; those that have alphas at all.
_MIXED = ("darts", "pc_darts", "drnas")
_DIFFERENTIABLE = (*_MIXED, "gdas")

#: Keys that only some values of another key read.
_READ_WITH = {
    # gdas executes one operation an edge, so it has no mixture to add a skip connection to, or to take apart; and its
    # gradient, straight through a choice, is that of no loss, so it has no second order.
    "search.order": ("search.strategy", _MIXED),
    "search.auxiliary_skip": ("search.strategy", _MIXED),
    "search.selection": ("search.strategy", _MIXED),
    # drnas has a regulariser of its own, and its alphas go through no softmax.
    "search.beta_weight": ("search.strategy", ("darts", "pc_darts", "gdas")),
    **{
        f"search.{key}": ("search.strategy", _DIFFERENTIABLE)
        for key in (
            "activation_checkpointing",
            "skip_dropout",
            "stop_at_skips",
            "alpha_lr",
            "alpha_betas",
            "alpha_weight_decay",
            "warmup_epochs",
            "real_alpha_every",
        )
    },
    "search.tau_start": ("search.strategy", ("gdas",)),
    "search.tau_end": ("search.strategy", ("gdas",)),
    "search.partial_channels": ("search.strategy", ("pc_darts",)),
    "search.dirichlet_weight": ("search.strategy", ("drnas",)),
    "search.candidate_epochs": ("search.strategy", ("random",)),
    "search.perturbation_batches": ("search.selection", ("perturbation",)),
    "search.perturbation_steps": ("search.selection", ("perturbation",)),
    "sgd.momentum": ("train.optim", ("sgd", "rmsprop")),
    "sgd.dampening": ("train.optim", ("sgd",)),
    "sgd.nesterov": ("train.optim", ("sgd",)),
    "rmsprop.alpha": ("train.optim", ("rmsprop",)),
    "adam.beta1": ("train.optim", ("adam", "amsgrad", "radam")),
    "adam.beta2": ("train.optim", ("adam", "amsgrad", "radam")),
    "train.stepsize": ("train.lr_scheduler", ("single_step", "multi_step")),
    "train.gamma": ("train.lr_scheduler", ("single_step", "multi_step")),
    "search.min_lr": ("train.lr_scheduler", ("cosine",)),
    "recipe.min_lr": ("train.lr_scheduler", ("cosine",)),
    "train.new_layers": ("train.staged_lr", (True,)),
    "train.base_lr_mult": ("train.staged_lr", (True,)),
    "test.visrank_topk": ("test.visrank", (True,)),
    "sampler.num_cams": ("sampler.train_sampler", ("RandomDomainSampler",)),
    "sampler.num_datasets": ("sampler.train_sampler", ("RandomDatasetSampler",)),
    "loss.triplet.weight_t": ("loss.name", ("triplet",)),
    "loss.triplet.weight_x": ("loss.name", ("triplet",)),
    "autoreid.pretrained": ("model.pretrained", (True,)),
}

#: Keys that nothing reads where another key is 0.
_READ_ABOVE_ZERO = {
    "recipe.warmup_factor": "recipe.warmup_epochs",
    "train.open_layers": "train.fixbase_epoch",
}

# What torchreid knows by name. It would pass over an unknown transform without a word.
_OPTIMISERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam")
_SCHEDULERS = ("single_step", "multi_step", "cosine")
_TRANSFORMS = ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase")
_METRICS = ("euclidean", "cosine")
_SAMPLERS = (
    "RandomSampler",
    "SequentialSampler",
    "RandomIdentitySampler",
    "RandomDomainSampler",
    "RandomDatasetSampler",
)

# What the plugin knows by name; a test compares them with the tables.
_STRATEGIES = ("darts", "gdas", "pc_darts", "drnas", "random")
_SELECTIONS = ("strength", "perturbation")
_SPACES = ("reid", "standard")
_SPLITS = ("image", "identity")
_NECKS = ("none", "before", "after")
_PRECISIONS = ("none", "bfloat16", "float16")
_GRAD_SYNCS = ("mean", "sum")

#: the stem and three reductions make it a pixel before the fourth stage
_LEAST_SIZE = 16
#: Above these a value is a slip, and would end in a computer out of memory. Checkpoints and the report know them too.
_MOST_SIZE, _MOST_CHANNELS, _MOST_CELLS, _MOST_BLOCKS, _MOST_PARTS = 8192, 4096, 64, 16, 64


def check_search_config(cfg: CfgNode) -> None:
    """Refuses values out of range, values that exclude one another, and keys that a search would ignore.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    _check_all_read(cfg, get_default_config(), _UNUSED_IN_SEARCH, "a search")
    _check_images(cfg)
    _check_search_batches(cfg)
    _check_optimisation(cfg, "search.min_lr")
    _check_network(cfg)
    _check_search(cfg)


def check_train_config(cfg: CfgNode, given: Sequence[str] = ()) -> None:
    """Refuses values out of range, values that exclude one another, and keys that a training would ignore.

    A recipe is for any model, so that a comparison is fair: what it says of our network (``autoreid.*``) is passed over
    where ``model.name`` is one of torchreid's own.

    Args:
        given: keys of the command line, which are refused even so.

    Raises:
        UserError: naming the key, the value and the fix.
    """
    if cfg.model.name == "autoreid_search":
        raise UserError(
            "model.name autoreid_search is the network of a search, which search.py trains; "
            "train the genotype that it finds: set model.name autoreid, with --genotype"
        )
    for name in given:
        if name.startswith("autoreid.") and not cfg.model.name.startswith("autoreid"):
            raise UserError(
                f"{name} has no effect in a training: {cfg.model.name} is torchreid's own; leave the key out"
            )
    _check_all_read(cfg, get_default_config(), _UNUSED_IN_TRAINING, "a training")
    _check_images(cfg)
    _one_of(cfg, "sampler.train_sampler", _SAMPLERS)
    _check_optimisation(cfg, "recipe.min_lr")
    _check_network(cfg)
    _check_recipe(cfg)


def _check_recipe(cfg: CfgNode) -> None:
    _one_of(cfg, "loss.name", ("softmax", "triplet"))
    by_identity = cfg.sampler.train_sampler == "RandomIdentitySampler"
    if by_identity:
        _check_identity_batches(cfg)
    if cfg.loss.name == "triplet":
        for name in ("loss.triplet.weight_t", "loss.triplet.weight_x"):
            _in_range(cfg, name, 0)
        if not cfg.loss.triplet.weight_t and not cfg.loss.triplet.weight_x:
            raise UserError("loss.triplet.weight_t and loss.triplet.weight_x are both 0; set one of them above 0")
        if cfg.loss.triplet.weight_t and not by_identity:
            raise UserError(
                f"the triplet loss needs several images of an identity in a batch, and {cfg.sampler.train_sampler} "
                "does not see to that; set sampler.train_sampler RandomIdentitySampler, or loss.name softmax"
            )
        if cfg.loss.triplet.weight_t:
            _check_triplets(cfg)
    _in_range(cfg, "recipe.warmup_epochs", 0, cfg.train.max_epoch, below=True)
    _in_range(cfg, "recipe.warmup_factor", 0, 1, above=True)
    for name in ("recipe.min_lr", "recipe.grad_clip", "recipe.keep_last", "autoreid.auxiliary_weight"):
        _in_range(cfg, name, 0)
    for name in ("recipe.ema_decay", "recipe.held_out", "autoreid.drop_path"):
        _in_range(cfg, name, 0, 1, below=True)
    _in_range(cfg, "train.base_lr_mult", 0)
    _in_range(cfg, "train.fixbase_epoch", 0)
    _in_range(cfg, "test.start_eval", 0)
    _in_range(cfg, "test.visrank_topk", 1)
    _one_of(cfg, "recipe.neck", _NECKS)
    _one_of(cfg, "recipe.amp", _PRECISIONS)
    _one_of(cfg, "autoreid.last_stride", (1, 2))
    if not cfg.test.ranks or min(cfg.test.ranks) < 1:
        raise UserError(f"test.ranks must be ranks, each at least 1, not {cfg.test.ranks}")


def _check_all_read(cfg: CfgNode, default: CfgNode, unused: dict[str, str], what: str) -> None:
    for name, instead in unused.items():
        if _get(cfg, name) != _get(default, name):
            raise UserError(f"{name} {_get(cfg, name)!r} has no effect in {what}: {instead}; leave the key out")
    for name, (chooser, values) in _READ_WITH.items():
        if _get(cfg, name) != _get(default, name) and _get(cfg, chooser) not in values:
            raise UserError(
                f"{name} {_get(cfg, name)!r} has no effect with {chooser} {_get(cfg, chooser)}; "
                f"set {chooser} to {' or '.join(map(str, values))}, or leave the key out"
            )
    for name, chooser in _READ_ABOVE_ZERO.items():
        if _get(cfg, name) != _get(default, name) and _get(cfg, chooser) == 0:
            raise UserError(
                f"{name} {_get(cfg, name)!r} has no effect with {chooser} 0; "
                f"set {chooser} above 0, or leave the key out"
            )


def _check_images(cfg: CfgNode) -> None:
    for name in ("data.root", "data.save_dir", "data.sources", "data.targets"):
        if not _get(cfg, name):
            raise UserError(f"{name} is empty; give a value, such as {_get(get_default_config(), name)}")
    for transform in cfg.data.transforms:
        if transform.lower() not in _TRANSFORMS:
            raise UserError(f"data.transforms: unknown transform {transform!r}; choose from {', '.join(_TRANSFORMS)}")
    for name in ("test.batch_size", "sampler.num_instances"):
        _in_range(cfg, name, 1)
    _in_range(cfg, "train.batch_size", 2)  # a batch norm takes statistics
    for name in ("data.height", "data.width"):
        _in_range(cfg, name, 1, _MOST_SIZE)
    for name in ("data.workers", "data.split_id"):
        _in_range(cfg, name, 0)
    for name in ("data.norm_mean", "data.norm_std"):
        if len(_get(cfg, name)) != 3:
            raise UserError(f"{name} must have three numbers, one a colour channel, not {_get(cfg, name)}")
    if min(cfg.data.norm_std) <= 0:
        raise UserError(f"data.norm_std must be above 0 in every colour channel, not {cfg.data.norm_std}")
    for name in ("data.height", "data.width"):
        _in_range(cfg, name, 1, _MAX_SIDE)
    _in_range(cfg, "data.workers", 0, _MAX_WORKERS)
    if min(cfg.data.height, cfg.data.width) < _LEAST_SIZE:
        raise UserError(
            f"data.height {cfg.data.height} and data.width {cfg.data.width} are too small for four stages, each of "
            f"which halves the image; give at least {_LEAST_SIZE} pixels"
        )


def _check_search_batches(cfg: CfgNode) -> None:
    if cfg.sampler.train_sampler != "RandomIdentitySampler":
        raise UserError(
            f"sampler.train_sampler must be RandomIdentitySampler in a search, not {cfg.sampler.train_sampler!r}; "
            "the configurations beside configs/autoreid_search.yaml set it (--config-file)"
        )
    _check_identity_batches(cfg)
    if cfg.search.loss_lambda < 1:
        _check_triplets(cfg)


def _check_identity_batches(cfg: CfgNode) -> None:
    batch, instances = cfg.train.batch_size, cfg.sampler.num_instances
    if batch % instances:
        raise UserError(
            f"train.batch_size {batch} does not divide by sampler.num_instances {instances}; "
            f"a batch is P identities with K images each: set train.batch_size to {-(-batch // instances) * instances}"
        )


def _check_triplets(cfg: CfgNode) -> None:
    batch, instances = cfg.train.batch_size, cfg.sampler.num_instances
    if instances == 1 or batch == instances:
        raise UserError(
            f"train.batch_size {batch} with sampler.num_instances {instances} gives the triplet loss "
            f"{'no second image of an identity' if instances == 1 else 'a single identity'}; "
            "set train.batch_size to at least twice sampler.num_instances, and that to at least 2"
        )


def _check_optimisation(cfg: CfgNode, min_lr: str) -> None:
    _one_of(cfg, "train.optim", _OPTIMISERS)
    _one_of(cfg, "train.lr_scheduler", _SCHEDULERS)
    _in_range(cfg, "train.lr", 0, above=True)
    for name in ("train.weight_decay", "sgd.dampening", "train.gamma", "loss.triplet.margin"):
        _in_range(cfg, name, 0)
    for name in ("sgd.momentum", "rmsprop.alpha", "adam.beta1", "adam.beta2"):
        _in_range(cfg, name, 0, 1, below=True)
    if cfg.sgd.nesterov and (cfg.sgd.momentum == 0 or cfg.sgd.dampening != 0):
        raise UserError(
            f"sgd.nesterov needs a momentum and no dampening; set sgd.momentum (now {cfg.sgd.momentum}) above 0 "
            f"and sgd.dampening (now {cfg.sgd.dampening}) to 0"
        )
    if not cfg.train.stepsize or min(cfg.train.stepsize) < 1:
        raise UserError(f"train.stepsize must be epochs, each at least 1, not {cfg.train.stepsize}")
    for name in ("train.max_epoch", "train.print_freq"):
        _in_range(cfg, name, 1)
    _in_range(cfg, "train.seed", 0, 2**32 - 1)
    _one_of(cfg, "test.dist_metric", _METRICS)
    if cfg.test.eval_freq != -1 and cfg.test.eval_freq < 1:
        raise UserError(f"test.eval_freq must be a number of epochs or -1 (at the end only), not {cfg.test.eval_freq}")
    if cfg.train.lr_scheduler == "cosine" and _get(cfg, min_lr) > cfg.train.lr:
        raise UserError(f"{min_lr} {_get(cfg, min_lr)} is above train.lr {cfg.train.lr}; lower it")


def _check_network(cfg: CfgNode) -> None:
    for name, most in (("channels", _MOST_CHANNELS), ("blocks", _MOST_BLOCKS), ("parts", _MOST_PARTS)):
        _in_range(cfg, f"autoreid.{name}", 1, most)
    if len(cfg.autoreid.layers) != 4 or not all(1 <= depth <= _MOST_CELLS for depth in cfg.autoreid.layers):
        raise UserError(
            f"autoreid.layers must be four numbers of cells, each at least 1 and at most {_MOST_CELLS}, "
            f"not {cfg.autoreid.layers}"
        )


def _check_search(cfg: CfgNode) -> None:
    for name, values in (("strategy", _STRATEGIES), ("order", (1, 2)), ("space", _SPACES), ("split", _SPLITS)):
        _one_of(cfg, f"search.{name}", values)
    _one_of(cfg, "search.amp", _PRECISIONS)
    _one_of(cfg, "search.grad_sync", _GRAD_SYNCS)
    _in_range(cfg, "search.alpha_fraction", 0, 1, above=True, below=True)
    _in_range(cfg, "search.loss_lambda", 0, 1)
    _in_range(cfg, "search.alpha_lr", 0, above=True)
    for name in ("alpha_weight_decay", "min_lr", "grad_clip", "warmup_epochs", "checkpoint_every"):
        _in_range(cfg, f"search.{name}", 0)
    _in_range(cfg, "search.real_alpha_every", 1)
    if len(cfg.search.alpha_betas) != 2 or not all(0 <= beta < 1 for beta in cfg.search.alpha_betas):
        raise UserError(f"search.alpha_betas must be two numbers from 0 to below 1, not {cfg.search.alpha_betas}")
    _check_strategy(cfg)
    _check_budget(cfg)
    if cfg.search.order == 2 and cfg.train.optim != "sgd":
        raise UserError(
            f"search.order 2 imitates a step of sgd, not of {cfg.train.optim}; set train.optim sgd or search.order 1"
        )
    if cfg.search.warmup_epochs >= cfg.train.max_epoch:
        raise UserError(
            f"search.warmup_epochs {cfg.search.warmup_epochs} leaves no epoch of train.max_epoch {cfg.train.max_epoch} "
            "for the alphas; lower it"
        )


def _check_strategy(cfg: CfgNode) -> None:
    own = cfg.search
    _one_of(cfg, "search.selection", _SELECTIONS)
    for name in ("tau_start", "tau_end"):
        _in_range(cfg, f"search.{name}", 0, above=True)
    for name in ("auxiliary_skip", "beta_weight", "dirichlet_weight", "perturbation_steps"):
        _in_range(cfg, f"search.{name}", 0)
    for name in ("partial_channels", "candidate_epochs", "perturbation_batches"):
        _in_range(cfg, f"search.{name}", 1)
    _in_range(cfg, "search.skip_dropout", 0, 1, below=True)
    edges = 2 * cfg.autoreid.blocks  # of a derived cell
    _in_range(cfg, "search.skip_cap", -1, edges)
    _in_range(cfg, "search.stop_at_skips", 0, edges)
    if own.tau_end > own.tau_start:
        raise UserError(f"search.tau_end {own.tau_end} is above search.tau_start {own.tau_start}; lower it")
    if own.strategy == "pc_darts" and (own.partial_channels < 2 or cfg.autoreid.channels % own.partial_channels):
        raise UserError(
            f"search.partial_channels must be at least 2 and divide autoreid.channels {cfg.autoreid.channels}, "
            f"which {own.partial_channels} does not; change one of them"
        )
    if own.strategy == "random" and cfg.train.max_epoch % own.candidate_epochs:
        raise UserError(
            f"train.max_epoch {cfg.train.max_epoch} does not divide by search.candidate_epochs {own.candidate_epochs}; "
            f"set it to {-(-cfg.train.max_epoch // own.candidate_epochs) * own.candidate_epochs}"
        )
    # What only a derivation by strength reads.
    for name in ("derive_renormalised", "skip_cap", "stop_at_skips"):
        key = f"search.{name}"
        if _get(cfg, key) == _get(get_default_config(), key):
            continue
        if own.strategy == "random" or own.selection == "perturbation":
            chooser = "search.strategy random" if own.strategy == "random" else "search.selection perturbation"
            raise UserError(
                f"{key} {_get(cfg, key)} has no effect with {chooser}, which does not rank by the alphas; "
                "leave one of them out"
            )


def _check_budget(cfg: CfgNode) -> None:
    default = get_default_config()
    for name in ("params", "macs", "latency_ms"):
        _in_range(cfg, f"search.budget.{name}", 0)
    if budget_limits(cfg) and cfg.search.selection == "perturbation":
        raise UserError("search.selection perturbation does not look at the cost of what it chooses; set strength")
    for key in cfg.search.budget:
        name = f"search.budget.{key}"
        needs = "search.budget.latency_ms" if key == "latency_table" else "a limit, such as search.budget.macs 1.2e9"
        limited = cfg.search.budget.latency_ms if key == "latency_table" else budget_limits(cfg)
        if _get(cfg, name) != _get(default, name) and not limited:
            raise UserError(f"{name} {_get(cfg, name)} has no effect without {needs}; set one, or leave the key out")
    _in_range(cfg, "search.budget.channels", 1)
    if len(cfg.search.budget.layers) != 4 or min(cfg.search.budget.layers) < 1:
        raise UserError(
            f"search.budget.layers must be four numbers of cells, each at least 1, not {cfg.search.budget.layers}"
        )
    for name in ("search.budget.height", "search.budget.width"):
        if _get(cfg, name):
            _in_range(cfg, name, _LEAST_SIZE)
    _one_of(cfg, "search.budget.last_stride", (1, 2))


def _get(cfg: CfgNode, name: str) -> Any:
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def _one_of(cfg: CfgNode, name: str, values: Sequence[Any]) -> None:
    if _get(cfg, name) not in values:
        raise UserError(f"{name} must be {' or '.join(map(str, values))}, not {_get(cfg, name)!r}")


def _in_range(
    cfg: CfgNode, name: str, least: float, most: float = math.inf, above: bool = False, below: bool = False
) -> None:
    """``least <= value <= most``; strictly more or less if ``above`` or ``below``."""
    value = _get(cfg, name)
    if (least < value if above else least <= value) and (value < most if below else value <= most):
        return
    bounds = f"{'above' if above else 'at least'} {least}"
    if most < math.inf:
        bounds += f" and {'below' if below else 'at most'} {most}"
    raise UserError(f"{name} must be {bounds}, not {value}")
