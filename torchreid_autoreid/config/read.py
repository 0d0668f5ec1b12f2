"""A configuration read from a YAML file, options and ``KEY VALUE`` pairs, each value in the type of its default."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..errors import UserError, short
from ..files import naming
from ..keys import KEYS, Key, default_tree

__all__ = [
    "all_keys",
    "expanded_path",
    "fill_config",
    "get",
    "get_default_config",
    "load_config",
    "plain_config",
    "plain_yaml",
    "read_config",
    "shipped_configs",
]

_LOGGER = logging.getLogger(__name__)


_MAX_FILE_BYTES = 1 << 16  # a configuration has a few kilobytes


_MAX_WHOLE = 1 << 53  # of whole numbers; what counts something larger than this is a mistake


_MAX_BITS = 4096  # of a whole number in YAML


_COMMAND_LINE = "the command line"
#: an installed package has the files inside; a checkout beside it
_SHIPPED = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")


#: keys whose values are paths
_PATHS = (
    "data.root",
    "data.save_dir",
    "model.load_weights",
    "autoreid.genotype",
    "autoreid.pretrained",
    "search.budget.latency_table",
)
#: keys of files that must be below train.max_epoch, which is shortened on the command line for a trial
_WARM_UPS = ("recipe.warmup_epochs", "search.warmup_epochs")


def get_default_config() -> CfgNode:
    """A fresh tree with all defaults."""
    return CfgNode(default_tree())


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

    Where ``train.max_epoch`` is among the pairs, warm-ups of the file become as short as it demands, with a warning.
    Where a pair chooses another value than the file, such as another ``search.strategy``, what the file says for its
    own choice has its default again, so that one file serves all. ``~`` in a path is the home folder.

    Args:
        config_file: a path, or the name of a shipped file (:func:`shipped_configs`).
        opts: keys and values in turn.
        root, sources, targets, transforms: of ``data``; sources without targets are the targets too.

    Raises:
        UserError: if a file is missing or is no YAML mapping, a key is unknown, or a value is of another type.

    >>> load_config(opts=["train.max_epoch", "3"]).train.max_epoch
    3
    """
    return read_config(config_file, opts, root=root, sources=sources, targets=targets, transforms=transforms)[0]


def read_config(
    config_file: str = "",
    opts: Sequence[str] = (),
    *,
    root: str = "",
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    transforms: Sequence[str] | None = None,
) -> tuple[CfgNode, set[str]]:
    """:func:`load_config`, and the keys that file, options and pairs have given, be it with their defaults."""
    cfg = get_default_config()
    given: set[str] = set()
    if config_file:
        content = _read_yaml(_find(config_file))
        _merge(cfg, content, config_file)
        given.update(_names(content))
    if root:
        cfg.data.root = root
        given.add("data.root")
    # Sources given alone are tested on too: the file's own targets are another dataset.
    for key, values in (("sources", sources), ("targets", targets or sources), ("transforms", transforms)):
        if values:
            cfg.data[key] = list(values)
            given.add(f"data.{key}")
    if len(opts) % 2:
        raise UserError(
            f"{_COMMAND_LINE}: keys and values come in pairs, and {short(opts[-1])} is alone; write KEY VALUE"
        )
    of_file = cfg.clone()
    for name, text in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, name, _parse(cfg, name, text), _COMMAND_LINE)
        given.add(name)
    _pass_over(cfg, of_file, opts[::2])
    if "train.max_epoch" in opts[::2]:
        _shorten_warm_ups(cfg, opts[::2])
    for name in _PATHS:
        _set(cfg, name, expanded_path(get(cfg, name), name), _COMMAND_LINE)
    return cfg, given


def fill_config(cfg: CfgNode, given: Collection[str], made_with: Any, path: str | Path) -> None:
    """Gives every key that nobody has given the value that a run was made with.

    Args:
        cfg: is changed.
        given: keys that stay as they are.
        made_with: name -> plain value, as a checkpoint keeps it. Keys that are unknown here are passed over.
        path: of the checkpoint, for the message.

    Raises:
        UserError: if a value is of another type than the key's.
    """
    if not isinstance(made_with, Mapping):
        raise UserError(f"{path} describes its configuration wrongly: {short(made_with)}")
    for name in list(all_keys(cfg)):
        if name in made_with and name not in given:
            _set(cfg, name, made_with[name], str(path))


def plain_config(cfg: CfgNode) -> dict[str, Any]:
    """Name -> plain value of all keys, as :func:`fill_config` takes them."""
    return {name: get(cfg, name) for name in all_keys(cfg)}


def expanded_path(text: str, name: str) -> str:
    """A path in which a leading ``~`` is the home folder; ``name`` says what it belongs to.

    Raises:
        UserError: if that is nobody's, or no path can be so.

    >>> expanded_path("~/runs", "data.save_dir").startswith("~"), expanded_path("./~", "data.save_dir")
    (False, './~')
    """
    if "\0" in text:
        raise UserError(f"{name}: {short(text)} has a NUL, which no path has; write it without")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise UserError(f"{name}: there is no home folder {text.split('/')[0]}; write ./{text} for a file of that name")
    return path


def is_chosen(cfg: CfgNode, key: Key) -> bool:
    """Whether a key is read with the choices of a configuration: its own choosers have one of its values, and are read.

    One of them is enough.
    """
    return not key.of or any(
        get(cfg, chooser) in values and is_chosen(cfg, KEYS[chooser]) for chooser, values in key.of.items()
    )


def _pass_over(cfg: CfgNode, of_file: CfgNode, given: Sequence[str]) -> None:
    """Gives the default to what the file says for a choice of its own that the command line has changed."""
    for name, key in KEYS.items():
        if name not in given and is_chosen(of_file, key) and not is_chosen(cfg, key):
            _set(cfg, name, list(key.default) if isinstance(key.default, list) else key.default, _COMMAND_LINE)


def _shorten_warm_ups(cfg: CfgNode, given: Sequence[str]) -> None:
    most = max(cfg.train.max_epoch - 1, 0)
    for name in _WARM_UPS:
        if name not in given and get(cfg, name) > most:
            _LOGGER.warning("%s %d does not fit train.max_epoch %d: it is %d", name, get(cfg, name), most + 1, most)
            _set(cfg, name, most, _COMMAND_LINE)


def _names(content: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield from _names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def shipped_configs() -> dict[str, Path]:
    """Name -> file of the configurations that come with the package."""
    return {path.name: path for folder in _SHIPPED for path in sorted(folder.glob("*.yaml"))}


def _find(config_file: str) -> Path:
    """A file; or, by its name alone, one that is shipped."""
    path = Path(config_file)
    return path if path.is_file() else shipped_configs().get(config_file, path)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        beside = [str(file) for file in path.parent.glob("*.yaml")]
        near = get_close_matches(str(path), beside, n=1) or get_close_matches(path.name, shipped_configs(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"by name there is {', '.join(shipped_configs())}"
        raise UserError(f"no configuration file {path}; {hint}")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, too many for a configuration; give a YAML file")
    try:
        with naming(path):
            content = plain_yaml(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line} is not plain YAML: {str(error.problem)[:200]}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
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
    except Exception as error:  # a tag on a text that does not fit it (``!!int x``) raises almost anything
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses aliases, and a key given twice, of which YAML would keep the last."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "it has an alias; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: Any) -> int:
        value = int(super().construct_yaml_int(node))
        if value.bit_length() > _MAX_BITS:  # Python does not write them out again
            raise yaml.constructor.ConstructorError(None, None, "it has a number of too many digits", node.start_mark)
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


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
        return "options such as --root go before or behind the KEY VALUE pairs, and --help shows all"
    keys = list(all_keys(cfg))
    section, last = name.split(".", 1)[0], name.rsplit(".", 1)[-1]
    siblings = {key.rsplit(".", 1)[-1]: key for key in keys if key.startswith(f"{section}.")}
    near = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    near += [siblings[end] for end in get_close_matches(last, siblings, n=2)]
    if not siblings:
        near += get_close_matches(name, [*keys, *cfg], n=2)
    if near:
        return f"did you mean {' or '.join(dict.fromkeys(near))}?"
    return f"choose from {', '.join(siblings.values())}" if siblings else f"it must begin with one of {', '.join(cfg)}"


def all_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield from all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [f"{prefix}{key}"]


def _set(cfg: CfgNode, name: str, value: Any, where: str) -> None:
    old = _lookup(cfg, name, where)
    if isinstance(old, CfgNode):
        raise UserError(
            f"{where}: {name} holds keys of its own; set one of {', '.join(f'{name}.{key}' for key in old)}"
        )
    section, _, key = name.rpartition(".")
    (get(cfg, section) if section else cfg)[key] = _converted(name, value, old, where)


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


def get(cfg: CfgNode, name: str) -> Any:
    for part in name.split("."):
        cfg = cfg[part]
    return cfg
