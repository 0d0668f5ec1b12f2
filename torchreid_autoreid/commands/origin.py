"""What a checkpoint says about the run that wrote it, taken over by the commands that go on from it or test it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, load_checkpoint
from ..config.read import fill_config, get
from ..deploy.onnx import OnnxExtractor
from ..engine.run_folder import checkpoint_path
from ..errors import UserError, short
from ..genotype import Genotype
from ..spec import TESTED_WITH, Description

__all__ = ["IMAGES", "SAME_DATA", "find_checkpoint", "tested_network", "tested_onnx"]

#: name of the setting that describes the training images
IMAGES = "training images:"
#: advice for processes that have found other data
SAME_DATA = "give all processes the same images, names and labels (--root)"

#: keys that a resumed run takes from the command line, or the defaults, alone
_OF_THIS_START = ("data.save_dir", "test.evaluate")
#: keys that decide what a search network computes
_SEARCH_NETWORK = (
    *("autoreid.channels", "autoreid.layers", "autoreid.blocks", "autoreid.parts", "autoreid.last_norm"),
    *("search.space", "search.strategy", "search.partial_channels"),
    *("data.height", "data.width", "data.norm_mean", "data.norm_std"),
)
#: command -> what only its checkpoints hold
_ONLY_IN = {"search": ("alpha_optimizer", "candidates"), "train": ("training",)}
#: keys of a test that may be given otherwise
_OF_TESTS = ("data.root", "data.targets", *(name for name in TESTED_WITH if name.startswith("test.")))
#: the same, of a test on the same datasets
_OF_DATASETS = ("cuhk03.", "market1501.", "data.split_id")
#: beginnings of keys that an ONNX file has no use for: it is the network
_OF_NETWORKS = ("model.", "autoreid.", "recipe.neck")


def find_checkpoint(
    resume: str, cfg: Any, given: Collection[str], command: str
) -> tuple[Checkpoint | None, Genotype | None]:
    """The checkpoint that ``--resume`` means; fills the configuration from it, but for the keys that are given.

    Those that contradict the checkpoint are refused when the run is resumed.

    Args:
        resume: the option.
        cfg: the configuration, which is changed.
        given: keys that somebody has given.
        command: ``search`` or ``train``.

    Returns:
        What it holds, or ``None`` to begin; and its genotype, or ``None`` if it has none or another one is given.

    Raises:
        UserError: if the file is no checkpoint, is of another command, or describes itself wrongly.
    """
    path = checkpoint_path(resume, cfg.data.save_dir)
    if path is None:
        return None, None
    state = load_checkpoint(path, ())
    other = next((name for name, keys in _ONLY_IN.items() if name != command and not state.keys().isdisjoint(keys)), "")
    if other:
        fix = "train the genotype.json beside it (--genotype)" if other == "search" else "give one of a search"
        raise UserError(f"{path} is of autoreid {other}, from which autoreid {command} cannot go on; {fix}")
    made_with = _configuration(state)
    fill_config(cfg, {*given, *_OF_THIS_START}, made_with, path)
    if "data.save_dir" not in given:
        cfg.data.save_dir = str(path.parent)
    described = Description.of_checkpoint(state)
    # The same words as before may mean a file that is gone.
    another = "autoreid.genotype" in given and cfg.autoreid.genotype != made_with.get("autoreid.genotype")
    return state, None if described is None or another else described[0].genotype


def tested_network(state: Checkpoint, cfg: Any, given: Collection[str]) -> Description | None:
    """The network that a file of weights is of, with the settings of its test in the configuration.

    A checkpoint says both, and keys that contradict it are refused; for other files the configuration says them.

    Returns:
        ``None`` for the network of a search.

    Raises:
        UserError: if the file cannot be read or describes itself wrongly, or a given key contradicts it.
    """
    path, made_with = state.path, _configuration(state)
    described = Description.of_checkpoint(state)
    description: Description | None = None
    if described is not None:
        description = described[0]
        fixed = _keys_of(description) | {name: made_with[name] for name in ("recipe.flip_test",) if name in made_with}
        genotype = description.genotype
        if genotype and "autoreid.genotype" in given:
            other = Genotype.load(cfg.autoreid.genotype)
            if other.cells != genotype.cells:
                raise _contradiction(path, "autoreid.genotype", genotype.name, cfg.autoreid.genotype)
    elif _is_of_a_search(state):
        fixed = {name: made_with[name] for name in _SEARCH_NETWORK if name in made_with}
        fixed["model.name"] = "autoreid_search"
    else:
        return None if cfg.model.name == "autoreid_search" else Description.of_config(cfg)
    _fix(cfg, given, fixed, path)
    fill_config(cfg, given, {name: made_with[name] for name in _OF_TESTS if name in made_with}, path)
    if cfg.data.targets == made_with.get("data.targets"):
        of_datasets = {name: value for name, value in made_with.items() if str(name).startswith(_OF_DATASETS)}
        fill_config(cfg, given, of_datasets, path)
    return description


def tested_onnx(path: str, cfg: Any, given: Collection[str], typed: Sequence[str]) -> OnnxExtractor:
    """The network of an ONNX file, with its input and the settings of its test in the configuration.

    Args:
        path: the file.
        cfg: is changed.
        given: keys that somebody has given; those that contradict the file's input are refused.
        typed: those on the command line, where a key of another network is refused.

    Raises:
        UserError: if the file cannot be read or describes itself wrongly, or a key contradicts it or has no effect.
    """
    if without := [name for name in typed if name.startswith(_OF_NETWORKS)]:
        raise UserError(f"{path} is a whole network, on which {without[0]} has no effect; leave it out")
    sizes = ("data.height", "data.width")
    network = OnnxExtractor(path, [get(cfg, name) for name in sizes] if set(sizes) <= set(given) else ())
    fixed = {"data.height": network.height, "data.width": network.width}
    for name in ("norm_mean", "norm_std"):
        if name in network.described:
            fixed[f"data.{name}"] = network.described[name]
    _fix(cfg, given, fixed, network.path)
    tested_with = network.described.get("tested_with", {})
    if isinstance(tested_with, Mapping):
        tested_with = {name: tested_with[name] for name in TESTED_WITH if name in tested_with}
    fill_config(cfg, given, tested_with, path)
    return network


def _fix(cfg: Any, given: Collection[str], fixed: Mapping[str, Any], path: Path) -> None:
    """Gives the configuration the keys that a file fixes, unless somebody has given another value."""
    for name in sorted(fixed.keys() & given):
        if get(cfg, name) != fixed[name]:
            if name == "model.name":
                raise UserError(
                    f"{path} holds a network {fixed[name]}, and model.name is {cfg.model.name}; leave it out"
                )
            raise _contradiction(path, name, fixed[name], get(cfg, name))
    fill_config(cfg, (), fixed, path)


def _contradiction(path: Path, name: str, its: Any, given: Any) -> UserError:
    return UserError(f"{path} was made with {name} {short(its)}, and {short(given)} is given; leave the key out")


def _keys_of(description: Description) -> dict[str, Any]:
    """Key -> value of the configuration that the description stands for."""
    keys = {
        "model.name": description.name,
        "data.height": description.height,
        "data.width": description.width,
        "data.norm_mean": list(description.norm_mean),
        "data.norm_std": list(description.norm_std),
        "recipe.neck": description.neck,
    }
    if description.genotype is None:
        return keys
    own = {name: getattr(description, name) for name in ("layers", "parts", "last_stride", "last_norm")}
    if description.name == "autoreid":  # the names of its sizes say their channels
        own["channels"] = description.channels
    return keys | {f"autoreid.{name}": list(v) if isinstance(v, tuple) else v for name, v in own.items()}


def _is_of_a_search(state: Mapping[str, Any]) -> bool:
    weights = state.get("state_dict")
    return isinstance(weights, Mapping) and any(str(key).startswith("architecture.") for key in weights)


def _configuration(state: Checkpoint) -> Mapping[str, Any]:
    found = state.get("configuration", {})
    if not isinstance(found, Mapping):
        raise UserError(f"{state.path} describes its configuration wrongly: {short(found)}")
    return found
