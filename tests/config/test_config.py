"""The configuration tree against torchreid's, and everything that can be wrong in a file or on the command line."""

import importlib.util
import inspect
import math
import os
import re
from pathlib import Path

import pytest
import torch
import torchreid
import yaml

from torchreid_autoreid.config import build, get_default_config
from torchreid_autoreid.config.build import (
    arguments_of,
    budget_limits,
    engine_run_kwargs,
    evolution_kwargs,
    imagedata_kwargs,
    lr_scheduler_kwargs,
    network_kwargs,
    optimizer_kwargs,
    rungs,
    searchdata_kwargs,
    selects_by_halving,
    settings_of_result,
    shape_kwargs,
    traindata_kwargs,
    warmup_epochs,
)
from torchreid_autoreid.config.check import check_search_config, check_train_config
from torchreid_autoreid.config.read import get, load_config, shipped_configs
from torchreid_autoreid.data import SearchDataManager
from torchreid_autoreid.engine import ImageAutoReIDSearchEngine
from torchreid_autoreid.engine.precision import PRECISIONS
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.genotype import SPACES
from torchreid_autoreid.keys import KEYS, OF_CANDIDATES, Range
from torchreid_autoreid.limits import check_value
from torchreid_autoreid.parallel.group import GRAD_SYNCS
from torchreid_autoreid.search.schedule import Schedule
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork
from torchreid_autoreid.space.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs").glob("autoreid_search*.yaml"))
DEFAULT = ROOT / "configs" / "autoreid_search.yaml"

#: The tree of torchreid 1.4.0, with its defaults.
TORCHREID = """
use_gpu: true
model: {name: resnet50, pretrained: true, load_weights: '', resume: ''}
data: {type: image, root: reid-data, sources: [market1501], targets: [market1501], workers: 4, split_id: 0, height: 256,
  width: 128, combineall: false, transforms: [random_flip], k_tfm: 1, norm_mean: [0.485, 0.456, 0.406],
  norm_std: [0.229, 0.224, 0.225], save_dir: log, load_train_targets: false}
market1501: {use_500k_distractors: false}
cuhk03: {labeled_images: false, classic_split: false, use_metric_cuhk03: false}
sampler: {train_sampler: RandomSampler, train_sampler_t: RandomSampler, num_instances: 4, num_cams: 1, num_datasets: 1}
video: {seq_len: 15, sample_method: evenly, pooling_method: avg}
train: {optim: adam, lr: 0.0003, weight_decay: 0.0005, max_epoch: 60, start_epoch: 0, batch_size: 32, fixbase_epoch: 0,
  open_layers: [classifier], staged_lr: false, new_layers: [classifier], base_lr_mult: 0.1, lr_scheduler: single_step,
  stepsize: [20], gamma: 0.1, print_freq: 20, seed: 1}
sgd: {momentum: 0.9, dampening: 0.0, nesterov: false}
rmsprop: {alpha: 0.99}
adam: {beta1: 0.9, beta2: 0.999}
loss: {name: softmax, softmax: {label_smooth: true}, triplet: {margin: 0.3, weight_t: 1.0, weight_x: 0.0}}
test: {batch_size: 100, dist_metric: euclidean, normalize_feature: false, ranks: [1, 5, 10, 20], evaluate: false,
  eval_freq: -1, start_eval: 0, rerank: false, visrank: false, visrank_topk: 10}
"""


def flat(tree, prefix=""):
    """{'train.lr': 0.0003, …}"""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def search_config(*opts):
    return load_config(str(DEFAULT), opts)


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- the tree and torchreid -------------------------------------------------------------------------------------------


def test_the_tree_is_torchreids_with_ours_beside_it():
    ours = flat(get_default_config())
    assert {
        key: value for key, value in ours.items() if not key.startswith(("autoreid.", "recipe.", "search."))
    } == flat(yaml.safe_load(TORCHREID))
    assert all(type(value) is type(ours[key]) for key, value in flat(yaml.safe_load(TORCHREID)).items())


def test_a_checkout_of_torchreid_has_the_same_tree_and_arguments():
    script = Path(os.environ.get("TORCHREID_CHECKOUT", "")) / "scripts" / "default_config.py"
    if not os.environ.get("TORCHREID_CHECKOUT") or not script.is_file():
        pytest.skip("TORCHREID_CHECKOUT names no checkout of the toolbox")
    spec = importlib.util.spec_from_file_location("torchreid_default_config", script)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    cfg = theirs.get_default_config()
    cfg.use_gpu = True  # their script sets it after the defaults
    assert flat(cfg) == flat(yaml.safe_load(TORCHREID))
    for name in ("imagedata_kwargs", "optimizer_kwargs", "lr_scheduler_kwargs", "engine_run_kwargs"):
        assert getattr(theirs, name)(cfg) == getattr(build, name)(get_default_config())


@pytest.mark.parametrize(
    ("kwargs", "function", "given"),
    [
        (imagedata_kwargs, torchreid.data.ImageDataManager.__init__, {"self"}),
        (optimizer_kwargs, torchreid.optim.build_optimizer, {"model"}),
        (lr_scheduler_kwargs, torchreid.optim.build_lr_scheduler, {"optimizer"}),
        (engine_run_kwargs, torchreid.engine.Engine.run, {"self"}),
        (
            network_kwargs,
            AutoReIDSearchNetwork.__init__,
            {"self", "num_classes", "loss"},
        ),
    ],
)
def test_every_argument_of_a_callable_has_a_key(kwargs, function, given):
    assert set(kwargs(get_default_config())) | given == set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (
            ImageAutoReIDSearchEngine,
            {
                "datamanager",
                "model",
                "optimizer",
                "alpha_optimizer",
                "scheduler",
                "loss",
                "schedule",
                "budget",
                "use_gpu",
                "distributed",  # torchrun says so
            },
        ),
        (Schedule, set()),
    ],
)
def test_every_argument_of_the_search_has_a_key(function, given):
    found = set(arguments_of(function, get_default_config().search))
    assert found | given == set(inspect.signature(function).parameters)
    assert not found & given


def test_every_argument_of_the_data_manager_has_a_key():
    own = inspect.signature(SearchDataManager.__init__).parameters
    accepted = {name for name in own if own[name].kind is not inspect.Parameter.VAR_KEYWORD}
    accepted |= set(inspect.signature(torchreid.data.ImageDataManager.__init__).parameters)
    assert set(searchdata_kwargs(get_default_config())) | {"self"} == accepted - {"share"}  # torchrun says that


def test_the_names_to_choose_from_are_those_that_exist():
    assert list(KEYS["train.optim"].allowed) == torchreid.optim.optimizer.AVAI_OPTIMS
    assert list(KEYS["train.lr_scheduler"].allowed) == torchreid.optim.lr_scheduler.AVAI_SCH
    source = inspect.getsource(torchreid.data.transforms.build_transforms)
    assert set(KEYS["data.transforms"].allowed) == set(re.findall(r"if '(\w+)' in transforms", source))
    assert set(KEYS["search.strategy"].allowed) == {*STRATEGIES, *OF_CANDIDATES}
    assert set(KEYS["search.space"].allowed) == set(SPACES)
    assert ("none", *PRECISIONS) == KEYS["search.amp"].allowed
    assert KEYS["search.grad_sync"].allowed == GRAD_SYNCS


def test_values_reach_the_arguments():
    cfg = search_config("train.seed", "7", "data.height", "96", "sgd.momentum", "0.8", "search.order", "2")
    assert searchdata_kwargs(cfg)["seed"] == 7
    assert searchdata_kwargs(cfg)["height"] == imagedata_kwargs(cfg)["height"] == 96
    assert optimizer_kwargs(cfg)["momentum"] == 0.8
    assert arguments_of(ImageAutoReIDSearchEngine, cfg.search)["order"] == 2


def test_a_search_reads_every_key_or_refuses_it():
    """No key is passed over: what neither the command nor its arguments read is in the table of refusals."""
    builders = (
        searchdata_kwargs,
        traindata_kwargs,
        imagedata_kwargs,
        optimizer_kwargs,
        lr_scheduler_kwargs,
        network_kwargs,
        budget_limits,
        shape_kwargs,
        warmup_epochs,
        rungs,
        evolution_kwargs,
    )
    source = (ROOT / "torchreid_autoreid" / "commands" / "search.py").read_text(encoding="utf-8")
    source += "".join(inspect.getsource(function) for function in builders)
    read = set(re.findall(r"\bcfg\.([a-z0-9_]+(?:\.[a-z0-9_]+)*)", source))
    for function in (ImageAutoReIDSearchEngine, Schedule):
        read |= {f"search.{name}" for name in arguments_of(function, get_default_config().search)}
    assert set(KEYS) == set(flat(get_default_config()))
    assert set(KEYS) <= read | {name for name, key in KEYS.items() if key.unused_in_search}
    others = {name for key in KEYS.values() for name in (*key.of, key.above_zero) if name}
    assert others <= set(KEYS)


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train: {lr: 1}", "train.lr", 1.0),
        ("train: {lr: 5e-5}", "train.lr", 5e-5),  # YAML 1.1 reads a text
        ("train: {lr: '.5'}", "train.lr", 0.5),
        ("search: {alpha_betas: [0, 9e-1]}", "search.alpha_betas", [0.0, 0.9]),
        ("data: {sources: market1501}", "data.sources", ["market1501"]),
        ("data: {transforms: []}", "data.transforms", []),
        ("data: {save_dir: '2024'}", "data.save_dir", "2024"),
        ("model: {resume: }", "model.resume", ""),
        ("train.max_epoch: 3", "train.max_epoch", 3),
        ("use_gpu: no", "use_gpu", False),
        ("train:\nsearch:\n  # all commented out\n", "train.max_epoch", 60),
        ("", "train.max_epoch", 60),
        ("a: &a {lr: 0.5}\n", None, None),
    ],
)
def test_files_are_read_in_the_types_of_the_defaults(tmp_path, text, key, value):
    if key is None:
        with pytest.raises(UserError, match="unknown key 'a'"):
            load_config(written(tmp_path, text))
        return
    found = flat(load_config(written(tmp_path, text)))[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("opts", "key", "value"),
    [
        (["train.lr", "5e-5"], "train.lr", 5e-5),
        (["data.root", "007"], "data.root", "007"),  # YAML 1.1 reads 7
        (["data.save_dir", "2024-01-02"], "data.save_dir", "2024-01-02"),  # a date
        (["data.save_dir", "a: b"], "data.save_dir", "a: b"),
        (["autoreid.layers", "[1, 1, 1, 1]"], "autoreid.layers", [1, 1, 1, 1]),
        (["data.sources", "folder"], "data.sources", ["folder"]),
        (["use_gpu", "False"], "use_gpu", False),
        (["train.seed", "1", "train.seed", "2"], "train.seed", 2),
    ],
)
def test_pairs_are_read_in_the_types_of_the_defaults(opts, key, value):
    found = flat(load_config(opts=opts))[key]
    assert found == value
    assert type(found) is type(value)


def test_pairs_come_over_options_and_options_over_the_file(tmp_path):
    file = written(tmp_path, "data: {root: file, sources: [file], height: 1}")
    cfg = load_config(file, ["data.sources", "pair"], root="option", sources=["option"], targets=["a", "b"])
    assert (cfg.data.root, cfg.data.sources, cfg.data.targets, cfg.data.height) == ("option", ["pair"], ["a", "b"], 1)


def test_what_was_dumped_is_read_back(tmp_path):
    cfg = search_config("train.weight_decay", "5e-5", "search.alpha_lr", "1e-12", "data.save_dir", "1e3")
    assert load_config(written(tmp_path, cfg.dump())) == cfg


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {max_epochs: 3}", ["'train.max_epochs'", "did you mean train.max_epoch"]),
        ("max_epoch: 3", ["'max_epoch'", "did you mean train.max_epoch?"]),
        ("serach: {order: 1}", ["'serach'", "search"]),
        ("rubbish: 1", ["'rubbish'", "model, data", "autoreid, recipe, search"]),
        ("train: {max_epoch: many}", ["train.max_epoch", "a whole number", "'many'"]),
        ("train: {max_epoch: 1.5}", ["train.max_epoch", "a whole number", "1.5"]),
        ("train: {max_epoch: true}", ["train.max_epoch", "a whole number", "True"]),
        ("train: {lr: fast}", ["train.lr", "a finite number", "'fast'"]),
        ("train: {lr: .nan}", ["train.lr", "a finite number", "nan"]),
        ("train: {lr: -.inf}", ["train.lr", "a finite number", "inf"]),
        ("train: {lr: [0.1]}", ["train.lr", "a finite number", "[0.1]"]),
        ("train: {lr: true}", ["train.lr", "a finite number", "True"]),
        ("train: {lr: }", ["train.lr", "a finite number", "None"]),
        ("use_gpu: 1", ["use_gpu", "true or false", "1"]),
        ("use_gpu: 'yes'", ["use_gpu", "true or false", "'yes'"]),
        ("data: {save_dir: 7}", ["data.save_dir", "a text", "7", "quotes"]),
        ("data: {save_dir: [a]}", ["data.save_dir", "a text", "['a']"]),
        ("autoreid: {layers: '2,2,2,2'}", ["autoreid.layers", "[2, 2, 2, 2]", "'2,2,2,2'"]),
        ("autoreid: {layers: [2, 2, x, 2]}", ["autoreid.layers", "a whole number", "'x'"]),
        ("train: 3", ["train", "max_epoch", "3"]),
        ("train: {max_epoch: {a: 1}}", ["train.max_epoch", "a whole number"]),
        ("train: {lr: 1, lr: 2}", ["line 1", "'lr'", "twice"]),
        ("- train", ["keys with values", "['train']"]),
        ("train: {lr: 1", ["line 1", "not plain YAML"]),
        ("a: b: c", ["line 1", "not plain YAML"]),
        ("train: !!python/object/apply:os.system ['touch hacked']", ["not plain YAML", "os.system"]),
        ("train: !!python/tuple [1]", ["not plain YAML", "tuple"]),
        ("\x00", ["not plain YAML"]),
        ("[" * 5000, ["not plain YAML"]),
        ("? [1, 2]\n: 3", ["not plain YAML"]),
        ("a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ntrain: {lr: [*c, *c]}", ["line 2", "an alias"]),
    ],
)
def test_a_wrong_file_gets_one_line_that_names_what_is_wrong(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_config(written(tmp_path, text))
    message = str(caught.value)
    assert all(word in message for word in [*words, "mine.yaml"]), message
    assert "\n" not in message
    assert len(message) < 1000
    assert not Path("hacked").exists()


def test_aliases_that_unfold_to_any_size_are_refused(tmp_path):
    levels = [f"&x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 30)]
    merges = [f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}]}}" for i in range(1, 60)]
    for text in (f"train: {{lr: [&x0 [z], {', '.join(levels)}]}}", "\n".join(["x0: &x0 {a: 1}", *merges])):
        with pytest.raises(UserError, match="an alias; write the value out"):
            load_config(written(tmp_path, text))


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["train.max_epoch"], ["pairs", "'train.max_epoch'"]),
        (["train.max_epoch", "3", "train.lr"], ["pairs", "'train.lr'"]),
        (["train.max_epochs", "3"], ["'train.max_epochs'", "did you mean train.max_epoch"]),
        (["train.max_epoch", "three"], ["train.max_epoch", "a whole number", "'three'"]),
        (["train.max_epoch", "[1"], ["train.max_epoch", "'[1'"]),
        (["train.max_epoch", "!!python/name:os.system"], ["train.max_epoch", "os.system"]),
        (["train", "3"], ["train", "train.max_epoch"]),
        (["--root", "x"], ["'--root'", "before"]),
        (["search.rubbish", "1"], ["search.order", "search.loss_lambda"]),
    ],
)
def test_a_wrong_pair_gets_one_line_that_names_it(opts, words):
    with pytest.raises(UserError) as caught:
        load_config(opts=opts)
    assert all(word in str(caught.value) for word in [*words, "command line"]), caught.value
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told_with_those_that_exist(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"did you mean configs/autoreid_search_market1501\.yaml"):
        load_config("configs/autoreid_search_market.yaml")
    with pytest.raises(UserError, match="no configuration file configs"):
        load_config("configs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean autoreid_search_market1501\.yaml"):
        load_config("autoreid_search_market.yaml")
    with pytest.raises(UserError, match=r"by name there is autoreid_search\.yaml, "):
        load_config("xyz")


def test_shipped_configurations_are_found_by_name_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert list(shipped_configs()) == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
    assert load_config("autoreid_search.yaml") == load_config(str(DEFAULT))
    (tmp_path / "autoreid_search.yaml").write_text("train: {max_epoch: 7}")
    assert load_config("autoreid_search.yaml").train.max_epoch == 7  # a file of that name comes first


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80" * 10)
    with pytest.raises(UserError, match="not plain YAML"):
        load_config(str(tmp_path / "binary.yaml"))
    (tmp_path / "large.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(UserError, match="2097152 bytes"):
        load_config(str(tmp_path / "large.yaml"))


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_hold_differences_only(path):
    check_search_config(load_config(str(path)))
    default, given = flat(get_default_config()), flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    said_anyway = {"data.sources", "data.targets", "data.height", "data.width", "train.batch_size"}
    assert {key for key, value in given.items() if default[key] == value} <= said_anyway


@pytest.mark.parametrize("name", ["market1501", "cuhk03_labeled", "cuhk03_detected", "msmt17"])
def test_recipes_are_the_papers(name):
    cfg = load_config(str(ROOT / "configs" / f"autoreid_search_{name}.yaml"))
    dataset, _, boxes = name.partition("_")
    assert cfg.data.sources == cfg.data.targets == [dataset]
    assert cfg.cuhk03.labeled_images == (boxes == "labeled")
    assert not cfg.cuhk03.classic_split
    assert (cfg.data.height, cfg.data.width, cfg.train.batch_size, cfg.train.max_epoch) == (384, 128, 32, 200)
    assert (cfg.train.optim, cfg.train.lr, cfg.search.min_lr, cfg.train.lr_scheduler) == ("sgd", 0.1, 0.001, "cosine")
    assert (cfg.sgd.momentum, cfg.train.weight_decay) == (0.9, 5e-5)
    assert (cfg.search.alpha_lr, cfg.search.alpha_betas) == (0.02, [0.5, 0.999])
    assert (cfg.search.alpha_loss, warmup_epochs(cfg)) == ("published", 0)
    assert (sum(cfg.autoreid.layers), cfg.autoreid.blocks, cfg.autoreid.parts) == (8, 4, 4)
    assert (cfg.search.space, cfg.search.strategy, cfg.search.split) == ("reid", "darts", "image")
    assert cfg.data.transforms == ["random_flip", "random_crop"]


# -- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.unused_in_search])
def test_keys_that_a_search_would_ignore_are_refused(key):
    default = flat(get_default_config())[key]
    other = {
        bool: lambda: not default,
        int: lambda: default + 1,
        float: lambda: default + 0.5,
        str: lambda: f"{default}x",
        list: lambda: default * 2,
    }[type(default)]()
    with pytest.raises(UserError, match=rf"^{re.escape(key)} .* has no effect in a search"):
        check_search_config(search_config(key, str(other)), given=[key])


def test_a_file_of_a_search_may_hold_the_recipe_of_the_training():
    """As that of a training may hold ``search.*``."""
    check_search_config(search_config("recipe.neck", "before", "recipe.ema_decay", "0.9"))


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        ("search.order 3", ["search.order", "1 or 2", "3"]),
        ("search.strategy gradient", ["search.strategy", "darts", "'gradient'"]),
        ("search.space wide", ["search.space", "reid or standard", "'wide'"]),
        ("search.split random", ["search.split", "image or identity", "'random'"]),
        ("search.alpha_fraction 0", ["search.alpha_fraction", "above 0 and below 1", "0.0"]),
        ("search.alpha_fraction 1", ["search.alpha_fraction", "above 0 and below 1", "1.0"]),
        ("search.alpha_lr -1", ["search.alpha_lr", "at least 0"]),
        ("search.alpha_betas [0.5]", ["search.alpha_betas", "two numbers", "[0.5]"]),
        ("search.alpha_betas [0.5,1]", ["search.alpha_betas", "below 1", "1.0"]),
        ("search.alpha_weight_decay -1", ["search.alpha_weight_decay", "at least 0", "-1.0"]),
        ("search.min_lr -0.1", ["search.min_lr", "at least 0", "-0.1"]),
        ("search.min_lr 0.5", ["search.min_lr 0.5", "train.lr 0.1"]),
        ("search.grad_clip -1", ["search.grad_clip", "at least 0", "-1.0"]),
        ("search.warmup_epochs -2", ["search.warmup_epochs", "at least -1", "-2"]),
        ("search.alpha_loss raw", ["search.alpha_loss", "scale_free or published", "raw"]),
        ("search.warmup_epochs 100", ["search.warmup_epochs 100", "train.max_epoch"]),
        ("search.real_alpha_every 0", ["search.real_alpha_every", "at least 1", "0"]),
        ("search.loss_lambda 1.5", ["search.loss_lambda", "at least 0 and at most 1", "1.5"]),
        ("search.checkpoint_every -1", ["search.checkpoint_every", "at least 0", "-1"]),
        ("search.amp float8", ["search.amp", "none or bfloat16 or float16", "'float8'"]),
        ("search.grad_sync max", ["search.grad_sync", "mean or sum", "'max'"]),
        ("recipe.sync_batch_norm false", ["recipe.sync_batch_norm False", "no effect in a search"]),
        ("search.strategy gdas search.tau_start 0", ["search.tau_start", "above 0", "0.0"]),
        ("search.strategy gdas search.tau_end -1", ["search.tau_end", "above 0", "-1.0"]),
        ("search.strategy gdas search.tau_end 20", ["search.tau_end 20.0", "search.tau_start 10.0"]),
        ("search.strategy gdas search.order 2", ["search.order 2", "no effect", "search.strategy gdas"]),
        ("search.strategy gdas search.auxiliary_skip 1", ["search.auxiliary_skip", "no effect", "gdas"]),
        ("search.strategy gdas search.selection perturbation", ["search.selection perturbation", "drnas", "gdas"]),
        ("search.tau_end 1", ["search.tau_end 1.0", "no effect", "search.strategy darts", "gdas"]),
        ("search.partial_channels 2", ["search.partial_channels 2", "no effect", "pc_darts"]),
        ("search.strategy pc_darts search.partial_channels 0", ["search.partial_channels", "at least 1", "0"]),
        ("search.strategy pc_darts search.partial_channels 1", ["search.partial_channels", "at least 2", "1"]),
        ("search.strategy pc_darts search.partial_channels 3", ["search.partial_channels", "autoreid.channels 8", "3"]),
        ("search.dirichlet_weight 1", ["search.dirichlet_weight 1.0", "no effect", "drnas"]),
        ("search.strategy drnas search.dirichlet_weight -1", ["search.dirichlet_weight", "at least 0", "-1.0"]),
        ("search.strategy drnas search.beta_weight 1", ["search.beta_weight 1.0", "no effect", "drnas"]),
        ("search.candidate_epochs 2", ["search.candidate_epochs 2", "no effect", "random"]),
        ("search.strategy random search.candidate_epochs 0", ["search.candidate_epochs", "at least 1", "0"]),
        ("search.strategy random search.candidate_epochs 4", ["train.max_epoch 10", "search.candidate_epochs 4", "12"]),
        ("search.strategy random search.held_out 0", ["search.held_out", "above 0", "0"]),
        (
            "search.selection strength search.held_out 0.5",
            ["search.held_out 0.5", "no effect", "darts", "predictor or halving"],
        ),
        ("search.strategy halving search.split identity", ["search.split 'identity'", "no effect", "halving"]),
        ("search.strategy halving", ["train.max_epoch 10", "20"]),
        ("search.strategy evolution", ["train.max_epoch 10", "the evolution and the rungs", "520"]),
        ("search.strategy evolution search.population 101", ["population", "101"]),
        (
            "search.strategy evolution search.evolution_candidates 20 search.rung_candidates [21,9]",
            ["first rung has 21", "only 20"],
        ),
        ("search.strategy halving search.rung_epochs [9]", ["search.rung_candidates [6, 2]", "[9]"]),
        ("search.strategy halving search.rung_epochs [9,9]", ["6 x 9, 2 x 9", "more epochs"]),
        ("search.strategy random search.order 2", ["search.order 2", "no effect", "random"]),
        ("search.strategy random search.alpha_lr 0.1", ["search.alpha_lr 0.1", "no effect", "random"]),
        ("search.strategy random search.skip_cap 2", ["search.skip_cap 2", "no effect", "random"]),
        ("search.strategy random search.stop_at_skips 2", ["search.stop_at_skips 2", "no effect", "random"]),
        ("search.auxiliary_skip -1", ["search.auxiliary_skip", "at least 0", "-1.0"]),
        ("search.beta_weight -1", ["search.beta_weight", "at least 0", "-1.0"]),
        ("search.skip_dropout 1", ["search.skip_dropout", "below 1", "1.0"]),
        ("search.skip_cap -2", ["search.skip_cap", "at least -1", "-2"]),
        ("search.stop_at_skips 9", ["search.stop_at_skips", "at most 8", "9"]),
        ("search.skip_cap 9", ["search.skip_cap", "at most 8", "9"]),
        ("search.stop_at_skips -1", ["search.stop_at_skips", "at least 0", "-1"]),
        ("search.selection chance", ["search.selection", "strength or perturbation", "'chance'"]),
        ("search.perturbation_steps 5", ["search.perturbation_steps 5", "no effect", "search.selection halving"]),
        ("search.selection perturbation search.perturbation_batches 0", ["search.perturbation_batches", "at least 1"]),
        ("search.selection perturbation search.perturbation_steps -1", ["search.perturbation_steps", "at least 0"]),
        ("search.selection perturbation search.skip_cap 1", ["search.skip_cap 1", "search.selection perturbation"]),
        ("search.selection perturbation search.stop_at_skips 2", ["search.stop_at_skips 2", "no effect"]),
        ("search.selection perturbation search.derive_renormalised true", ["search.derive_renormalised", "no effect"]),
        ("search.selection perturbation search.budget.macs 1e9", ["search.selection perturbation", "cost", "strength"]),
        ("search.budget.params -1", ["search.budget.params", "at least 0", "-1.0"]),
        ("search.budget.macs -1", ["search.budget.macs", "at least 0", "-1.0"]),
        ("search.budget.latency_ms -1", ["search.budget.latency_ms", "at least 0", "-1.0"]),
        ("search.budget.channels 32", ["search.budget.channels 32", "no effect without a limit"]),
        ("search.budget.layers [1,1,1,1]", ["search.budget.layers [1, 1, 1, 1]", "no effect without a limit"]),
        ("search.budget.height 128", ["search.budget.height 128", "no effect without a limit"]),
        ("search.budget.width 64", ["search.budget.width 64", "no effect without a limit"]),
        ("search.budget.last_stride 1", ["search.budget.last_stride 1", "no effect without a limit"]),
        ("search.budget.latency_table x.json search.budget.macs 1e9", ["latency_table x.json", "latency_ms"]),
        ("search.budget.macs 1e9 search.budget.channels 0", ["search.budget.channels", "at least 1", "0"]),
        ("search.budget.macs 1e9 search.budget.layers [2,2]", ["search.budget.layers", "four", "[2, 2]"]),
        ("search.budget.macs 1e9 search.budget.height 8", ["search.budget.height", "at least 16", "8"]),
        ("search.budget.macs 1e9 search.budget.width -1", ["search.budget.width", "at least 0", "-1"]),
        ("search.budget.macs 1e9 search.budget.width 8", ["search.budget.width", "at least 16, or 0", "8"]),
        ("search.budget.macs 1e9 search.budget.last_stride 3", ["search.budget.last_stride", "1 or 2", "3"]),
        ("search.order 2 train.optim adam", ["search.order 2", "adam", "train.optim sgd"]),
        ("autoreid.layers [2,2,2]", ["autoreid.layers", "four", "[2, 2, 2]"]),
        ("autoreid.layers [2,2,0,2]", ["autoreid.layers", "at least 1", "[2, 2, 0, 2]"]),
        ("autoreid.layers []", ["autoreid.layers", "four", "[]"]),
        ("autoreid.channels 0", ["autoreid.channels", "at least 1", "0"]),
        ("autoreid.blocks 0", ["autoreid.blocks", "at least 1", "0"]),
        ("autoreid.parts -2", ["autoreid.parts", "at least 1", "-2"]),
        ("train.optim lion", ["train.optim", "adam or amsgrad or sgd or rmsprop or radam", "'lion'"]),
        ("train.lr_scheduler linear", ["train.lr_scheduler", "single_step or multi_step or cosine", "'linear'"]),
        ("train.lr 0", ["train.lr", "above 0", "0.0"]),
        ("train.lr -1", ["train.lr", "above 0", "-1.0"]),
        ("train.weight_decay -1", ["train.weight_decay", "at least 0", "-1.0"]),
        ("train.max_epoch 0", ["train.max_epoch", "at least 1", "0"]),
        ("train.print_freq 0", ["train.print_freq", "at least 1", "0"]),
        ("train.seed -1", ["train.seed", "at least 0", "-1"]),
        ("train.seed 4294967296", ["train.seed", "4294967295", "4294967296"]),
        ("train.batch_size 1", ["train.batch_size", "at least 2", "1"]),
        ("train.batch_size 18", ["train.batch_size 18", "sampler.num_instances 4", "20"]),
        ("train.batch_size 4", ["train.batch_size 4", "a single identity"]),
        ("sampler.num_instances 1", ["sampler.num_instances 1", "no second image"]),
        ("sampler.num_instances 0", ["sampler.num_instances", "at least 1", "0"]),
        ("sampler.train_sampler RandomSampler", ["sampler.train_sampler", "RandomIdentitySampler", "'RandomSampler'"]),
        ("sgd.momentum 1", ["sgd.momentum", "below 1", "1.0"]),
        ("sgd.dampening -1", ["sgd.dampening", "at least 0", "-1.0"]),
        ("sgd.nesterov true sgd.momentum 0", ["sgd.nesterov", "sgd.momentum (now 0.0)"]),
        ("sgd.nesterov true sgd.dampening 0.1", ["sgd.nesterov", "sgd.dampening (now 0.1)"]),
        ("adam.beta1 0.5", ["adam.beta1 0.5", "no effect", "train.optim sgd", "adam or amsgrad or radam"]),
        ("train.optim adam adam.beta1 1", ["adam.beta1", "below 1", "1.0"]),
        ("train.optim adam sgd.momentum 0.5", ["sgd.momentum 0.5", "no effect", "train.optim adam"]),
        ("train.stepsize [5]", ["train.stepsize [5]", "no effect", "train.lr_scheduler cosine"]),
        ("train.lr_scheduler multi_step train.stepsize []", ["train.stepsize", "[]"]),
        ("train.lr_scheduler multi_step search.min_lr 0.01", ["search.min_lr 0.01", "no effect", "cosine"]),
        ("train.lr_scheduler single_step train.gamma -1", ["train.gamma", "at least 0", "-1.0"]),
        ("loss.triplet.margin -0.1", ["loss.triplet.margin", "at least 0", "-0.1"]),
        ("data.height 0", ["data.height", "at least 1", "0"]),
        ("data.width -1", ["data.width", "at least 1", "-1"]),
        ("data.workers -1", ["data.workers", "at least 0", "-1"]),
        ("data.split_id -1", ["data.split_id", "at least 0", "-1"]),
        ("data.sources []", ["data.sources", "empty"]),
        ("data.transforms [random_flp]", ["data.transforms", "'random_flp'", "random_flip"]),
        ("data.norm_mean [0.5]", ["data.norm_mean", "three", "[0.5]"]),
        ("data.norm_std [1,1,0]", ["data.norm_std", "at least 1e-06", "[1.0, 1.0, 0.0]"]),
        ("test.batch_size 0", ["test.batch_size", "at least 1", "0"]),
        ("test.dist_metric manhattan", ["test.dist_metric", "euclidean or cosine", "'manhattan'"]),
        ("test.eval_freq 0", ["test.eval_freq", "-1", "0"]),
        ("test.eval_freq -2", ["test.eval_freq", "-1", "-2"]),
    ],
)
def test_values_out_of_range_get_one_line_that_names_them(opts, words):
    with pytest.raises(UserError) as caught:
        check_search_config(search_config(*opts.split(" ")), given=opts.split(" ")[::2])
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "opts",
    [
        "",
        "search.loss_lambda 1 train.batch_size 4",  # without a triplet loss a batch may have one identity
        "search.loss_lambda 1 sampler.num_instances 1",
        "search.loss_lambda 0 search.grad_clip 0",
        "search.order 2 sgd.nesterov true sgd.momentum 0.5",
        "train.optim adam adam.beta1 0.5",
        "train.lr_scheduler multi_step train.stepsize [5,8] train.gamma 0.5",
        "test.eval_freq -1 test.dist_metric cosine test.normalize_feature true",
        "data.transforms [] data.combineall true",
        "data.transforms [Random_Flip,random_erase]",
        "search.strategy gdas search.beta_weight 50 search.skip_dropout 0.3 search.skip_cap 0 search.stop_at_skips 2",
        "search.strategy pc_darts search.partial_channels 8 search.auxiliary_skip 1 search.order 2",
        "search.strategy drnas search.dirichlet_weight 0 search.order 2 search.selection perturbation",
        "search.strategy random search.candidate_epochs 5 search.space standard search.held_out 0.5",
        "search.selection perturbation search.perturbation_steps 0 search.perturbation_batches 1",
    ],
)
def test_values_in_range_pass(opts):
    check_search_config(search_config(*opts.split()), opts.split()[::2])


@pytest.mark.parametrize("name", ["autoreid_search", "autoreid_search_market1501"])
@pytest.mark.parametrize(
    ("strategy", "epochs"),
    [("gdas", 10), ("pc_darts", 10), ("drnas", 10), ("random", 100), ("predictor", 100), ("evolution", 0)],
)
def test_one_file_serves_all_strategies(name, strategy, epochs, tmp_path):
    """What the file says of its own strategy has its default where the command line chooses another."""
    words = ["search.strategy", strategy]
    if strategy == "evolution":
        words += ["search.rung_candidates", "[9, 3]", "search.rung_epochs", "[9, 27]"]
        epochs = 100 * 5 + 135
    words += ["train.max_epoch", str(epochs)]
    cfg = load_config(f"{name}.yaml", words)
    check_search_config(cfg, words[::2])
    if strategy in ("gdas", "random", "predictor", "evolution"):
        assert cfg.search.order == 1
    if strategy in ("random", "predictor"):
        assert (cfg.search.rung_epochs, cfg.search.alpha_loss) == ([9, 27], "scale_free")
    (tmp_path / "config.yaml").write_text(cfg.dump())  # as a log folder has it: it can be repeated
    check_search_config(load_config(str(tmp_path / "config.yaml")))


def test_a_study_and_a_second_objective_go_with_the_strategies_that_have_them(tmp_path):
    """A search with alphas that held on to them would end with an error of Python's."""
    own = "strategy: random, candidate_epochs: 1, study: st.log, second_objective: macs, budget: {width: 64}"
    (tmp_path / "own.yaml").write_text(f"sampler: {{train_sampler: RandomIdentitySampler}}\nsearch: {{{own}}}")
    cfg = load_config(str(tmp_path / "own.yaml"), ["search.strategy", "darts"])
    assert (cfg.search.study, cfg.search.second_objective, cfg.search.candidate_epochs) == ("", "none", 5)
    with pytest.raises(UserError, match=r"search.budget.width 64 has no effect without a limit"):
        check_search_config(cfg)


@pytest.mark.parametrize(("name", "value"), [("order", "2"), ("rung_epochs", "[2, 7]"), ("selection", "strength")])
def test_what_a_strategy_does_not_read_is_refused_on_the_command_line_and_in_its_own_file(name, value, tmp_path):
    words = ["search.strategy", "random", f"search.{name}", value]
    with pytest.raises(UserError, match=rf"search\.{name} .*has no effect"):
        check_search_config(search_config(*words), words[::2])
    search = f"search: {{strategy: random, {name}: {value}}}"
    (tmp_path / "own.yaml").write_text(f"sampler: {{train_sampler: RandomIdentitySampler}}\n{search}")
    for again in ([], ["search.strategy", "random"]):
        with pytest.raises(UserError, match=rf"search\.{name} .*has no effect"):
            check_search_config(load_config(str(tmp_path / "own.yaml"), again), again[::2])


def test_what_is_given_in_vain_is_refused_even_with_its_default():
    words = ["search.strategy", "random", "search.selection", "halving"]
    with pytest.raises(UserError, match=r"search.selection 'halving' has no effect with search.strategy random; set"):
        check_search_config(search_config(*words), words[::2])


def test_the_advice_names_what_is_not_so_yet():
    words = ["search.strategy", "random", "search.rung_candidates", "[6, 2]"]
    with pytest.raises(UserError) as caught:
        check_search_config(search_config(*words), words[::2])
    ways = "halving or evolution or darts or pc_darts or drnas or gdas"
    assert f"has no effect with search.strategy random; set search.strategy to {ways}, or leave" in str(caught.value)


def test_without_alphas_there_is_no_selection():
    for strategy in ("darts", "gdas"):
        assert selects_by_halving(search_config("search.strategy", strategy))
        assert not selects_by_halving(search_config("search.strategy", strategy, "search.selection", "strength"))
    assert not selects_by_halving(search_config("search.strategy", "random"))


def test_without_a_configuration_the_fix_is_told():
    with pytest.raises(UserError, match=r"RandomSampler.*--config-file"):
        check_search_config(load_config())


def test_every_number_of_a_search_has_a_bound():
    """A number that a search reads cannot be absurd: the smallest value of its type is refused (NaN is, on reading)."""
    allowed = {"data.norm_mean"}  # any mean is a mean
    for key, default in flat(get_default_config()).items():
        item = default[0] if isinstance(default, list) else default
        if isinstance(item, bool | str) or key in allowed:
            continue
        lowest = -(10**9) if isinstance(item, int) else -1e9
        cfg = search_config(key, str([lowest] * len(default) if isinstance(default, list) else lowest))
        with pytest.raises(UserError, match=re.escape(key)):
            check_search_config(cfg)
        if isinstance(item, float):
            with pytest.raises(UserError, match=re.escape(key)):
                search_config(key, str([math.nan] * len(default) if isinstance(default, list) else math.nan))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("autoreid.channels", 4097),
        ("autoreid.blocks", 17),
        ("autoreid.parts", 65),
        ("autoreid.layers", [1, 1, 65, 1]),
        ("data.height", 8193),
        ("data.width", 8193),
    ],
)
def test_sizes_that_would_fill_any_memory_are_slips(key, value):
    with pytest.raises(UserError, match=rf"{re.escape(key)}.*at most.*not {re.escape(str(value))}"):
        check_search_config(search_config(key, str(value)))


def test_a_resumed_run_may_change_what_the_result_does_not_depend_on_and_nothing_else():
    default = settings_of_result(search_config())
    for free in ("data.root x", "data.save_dir x", "data.workers 2", "test.eval_freq 5", "use_gpu false"):
        assert settings_of_result(search_config(*free.split())) == default
    for bound in ("train.lr 0.2", "train.seed 2", "search.order 2", "train.max_epoch 99", "autoreid.parts 2"):
        key, value = bound.split()
        changed = settings_of_result(search_config(key, value))
        assert {name for name in changed if changed[name] != default[name]} == {key}
    steps = ("train.lr_scheduler", "multi_step", "train.max_epoch")  # a longer run is no other one there
    assert settings_of_result(search_config(*steps, "20")) == settings_of_result(search_config(*steps, "40"))
    assert all(isinstance(value, bool | int | float | str | list) for value in default.values())


def test_sources_given_alone_are_the_targets_too():
    cfg = load_config(str(DEFAULT), sources=["folder"])
    assert (cfg.data.sources, cfg.data.targets) == (["folder"], ["folder"])
    cfg = load_config(str(DEFAULT), sources=["folder"], targets=["market1501"])
    assert (cfg.data.sources, cfg.data.targets) == (["folder"], ["market1501"])


# -- training ---------------------------------------------------------------------------------------------------------

TRAIN = DEFAULT.parent / "autoreid_train.yaml"


def train_config(*opts):
    return load_config(str(TRAIN), opts)


@pytest.mark.parametrize("path", sorted(DEFAULT.parent.glob("autoreid_train*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_training_load(path):
    cfg = load_config(str(path))
    check_train_config(cfg)
    assert set(traindata_kwargs(cfg)) >= {"held_out", "seed", "root"}


@pytest.mark.parametrize("name", ["market1501", "cuhk03_labeled", "cuhk03_detected", "msmt17"])
def test_recipes_of_training_are_the_papers(name):
    cfg = load_config(str(DEFAULT.parent / f"autoreid_train_{name}.yaml"))
    assert (cfg.model.name, cfg.autoreid.channels, cfg.autoreid.layers) == ("autoreid", 64, [2, 2, 2, 2])
    assert (cfg.data.height, cfg.data.width, cfg.data.transforms) == (384, 128, ["random_flip", "random_crop"])
    assert (cfg.train.optim, cfg.train.lr, cfg.train.stepsize) == ("adam", 3.5e-4, [150, 225])
    assert (cfg.loss.name, cfg.loss.triplet.weight_t, cfg.loss.triplet.weight_x) == ("triplet", 0.5, 0.5)
    assert cfg.cuhk03.labeled_images == (name == "cuhk03_labeled")
    assert cfg.data.sources == cfg.data.targets == [name.split("_")[0]]


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["search.order", "2"], "search.order 2 has no effect in a training: search.py takes it"),
        (["train.start_epoch", "3"], "use --resume"),
        (["data.k_tfm", "2"], "data.k_tfm 2"),
        (["model.name", "autoreid_search"], "autoreid_search is the network of a search"),
        (
            ["loss.name", "softmax", "loss.triplet.weight_x", "0.5"],
            "loss.triplet.weight_x 0.5 has no effect with loss.name softmax",
        ),
        (["loss.name", "contrastive"], "loss.name must be softmax or triplet, not 'contrastive'"),
        (["loss.triplet.weight_x", "0", "loss.triplet.weight_t", "0"], "are both 0"),
        (["sampler.train_sampler", "RandomSampler"], "set sampler.train_sampler RandomIdentitySampler"),
        (["sampler.train_sampler", "Randomly"], "sampler.train_sampler must be"),
        (["train.batch_size", "30"], "train.batch_size 30 does not divide"),
        (["train.batch_size", "1", "sampler.train_sampler", "RandomSampler"], "train.batch_size must be at least 2"),
        (["train.batch_size", "4"], "a single identity"),
        (["recipe.warmup_epochs", "100"], "recipe.warmup_epochs 100 leaves no epoch of train.max_epoch"),
        (["recipe.warmup_factor", "0"], "recipe.warmup_factor must be above 0"),
        (["recipe.neck", "long"], "recipe.neck must be none or before or after, not 'long'"),
        (["recipe.amp", "fp16"], "recipe.amp must be none or bfloat16 or float16"),
        (["recipe.ema_decay", "1"], "recipe.ema_decay must be at least 0 and below 1"),
        (["recipe.held_out", "-0.1"], "recipe.held_out must be"),
        (["recipe.keep_last", "-1"], "recipe.keep_last must be"),
        (["recipe.grad_clip", "-1"], "recipe.grad_clip must be"),
        (["recipe.min_lr", "0.2"], "recipe.min_lr 0.2 is above train.lr"),
        (
            ["train.lr_scheduler", "multi_step", "recipe.min_lr", "0.0001"],
            "no effect with train.lr_scheduler multi_step",
        ),
        (["train.base_lr_mult", "0.5"], "has no effect with train.staged_lr False; set train.staged_lr to True"),
        (["autoreid.pretrained", "x.pth"], "no effect with model.pretrained False"),
        (
            ["recipe.warmup_epochs", "0", "recipe.warmup_factor", "0.5"],
            "recipe.warmup_factor 0.5 has no effect with recipe.warmup_epochs 0; set recipe.warmup_epochs above 0",
        ),
        (["train.open_layers", "[neck]"], "train.open_layers ['neck'] has no effect with train.fixbase_epoch 0"),
        (["test.visrank_topk", "5"], "test.visrank_topk 5 has no effect with test.visrank False"),
        (["test.visrank", "true", "test.visrank_topk", "0"], "test.visrank_topk must be at least 1"),
        (
            ["sampler.num_cams", "2"],
            "sampler.num_cams 2 has no effect with sampler.train_sampler RandomIdentity",
        ),
        (["sampler.num_datasets", "2"], "set sampler.train_sampler to RandomDatasetSampler"),
        (["autoreid.last_stride", "3"], "autoreid.last_stride must be 1 or 2"),
        (["autoreid.drop_path", "1"], "autoreid.drop_path must be"),
        (["autoreid.auxiliary_weight", "-1"], "autoreid.auxiliary_weight must be"),
        (["data.height", "15"], "data.height 15 and data.width 32 are too small for four stages"),
        (["test.ranks", "[0]"], "test.ranks must be whole numbers, each at least 1"),
    ],
)
def test_mistakes_in_a_training_get_one_line(opts, words):
    with pytest.raises(UserError) as caught:
        check_train_config(train_config(*opts), opts[::2])
    assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "opts",
    [
        ["search.strategy", "darts", "search.order", "2"],  # of a file that serves a search as well
        ["loss.name", "softmax"],  # what the file says of the triplet loss is passed over
        ["recipe.warmup_factor", "0.5"],
        ["train.fixbase_epoch", "1", "train.open_layers", "[neck]"],
        ["test.visrank", "true", "test.visrank_topk", "5"],
        ["sampler.train_sampler", "RandomDomainSampler", "sampler.num_cams", "2", "loss.triplet.weight_t", "0"],
        ["sampler.train_sampler", "RandomDatasetSampler", "sampler.num_datasets", "2", "loss.triplet.weight_t", "0"],
    ],
)
def test_keys_that_another_one_switches_on_pass_with_it(opts):
    check_train_config(train_config(*opts))


def test_a_recipe_is_for_any_model_but_the_command_line_is_taken_at_its_word():
    cfg = train_config("model.name", "resnet50")
    assert cfg.autoreid.channels == 16  # the recipe's, for our network
    check_train_config(cfg, ["train.max_epoch"])
    with pytest.raises(UserError, match=r"autoreid.channels has no effect in a training: resnet50 is torchreid's own"):
        check_train_config(cfg, ["autoreid.channels"])


def test_a_training_reads_every_key_or_refuses_it():
    """A key of ours that no argument and no check of a training knows would be parsed and ignored."""
    source = (ROOT / "torchreid_autoreid" / "commands" / "train.py").read_text(encoding="utf-8")
    source += (ROOT / "torchreid_autoreid" / "spec.py").read_text(encoding="utf-8")
    for section in ("recipe", "autoreid"):
        for key in get_default_config()[section]:
            known = f"{section}.{key}" in source or f"own.{key}" in source
            assert known or (section, key) in {("recipe", "held_out"), ("autoreid", "blocks")}, f"{section}.{key}"
    for key in (key for key in flat(get_default_config()) if key.startswith("search.")):
        cfg = train_config()
        section, _, last = key.rpartition(".")
        get(cfg, section)[last] = "another value"
        with pytest.raises(UserError, match=f"{key} .* no effect"):
            check_train_config(cfg, [key])


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if isinstance(key.allowed, Range)])
def test_every_number_has_an_end_and_is_a_number(key):
    """Else PyTorch computes with infinities, or a loop has no end."""
    wanted = KEYS[key].allowed
    assert math.isfinite(wanted.least)
    assert abs(wanted.most) < torch.finfo(torch.float32).max
    for value in (True, "0x1", None, float("nan"), float("inf"), -float("inf"), 10**400, 1e308, -1e308, [1]):
        assert value not in wanted
    with pytest.raises(UserError, match=re.escape(key)):
        check_value(key, [True] * (wanted.count or 1) if wanted.count else True)
