"""What each key of a configuration may be, and with it each argument that the key becomes; checked here for both."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

from .errors import UserError, short
from .keys import KEYS, Range

__all__ = ["LEAST_SIZE", "MOST_PIXELS", "Range", "check_choice", "check_value", "check_values", "is_whole"]

#: the stem and three reductions make it a pixel before the fourth stage
LEAST_SIZE = 16
#: of one image that a network takes; people are seldom more than 1024 x 512
MOST_PIXELS = 1 << 21
_WORDS = {2: "two", 3: "three", 4: "four"}


def check_value(key: str, value: Any, name: str = "") -> None:
    """Refuses a number, or a list of numbers, out of the range of ``key``.

    Args:
        name: what the caller calls it; the key itself by default.

    Raises:
        UserError: naming the value and what it may be.
    """
    wanted, name = KEYS[key].allowed, name or key
    assert isinstance(wanted, Range)
    default = KEYS[key].default
    if isinstance(default, list):
        values = list(value) if isinstance(value, list | tuple) else []
        kind = "whole numbers" if isinstance(default[0], int) else "numbers"
        kind = f"{_WORDS[wanted.count]} {kind}" if wanted.count else kind
        fits = bool(values) and (not wanted.count or len(values) == wanted.count)
        if not fits or not all(_fits(item, wanted, default[0]) for item in values):
            raise UserError(f"{name} must be {kind}, each {wanted}, not {short(values or value)}")
    elif not _fits(value, wanted, default):
        kind = "a whole number, " if value in wanted else ""
        raise UserError(f"{name} must be {kind}{wanted}, not {short(value)}")


def _fits(value: Any, wanted: Range, default: Any) -> bool:
    """Whether a number is in the range, and whole where the default is: a float would fail deep inside PyTorch."""
    return value in wanted and (is_whole(value) or not isinstance(default, int))


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; truth values are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_values(section: str, **values: Any) -> None:
    """:func:`check_value` of several arguments that are called as the keys of a section are.

    >>> check_values("search", tau_start=1.0, tau_end=-1)
    Traceback (most recent call last):
    ...
    torchreid_autoreid.errors.UserError: tau_end must be above 0 and at most 1e+30, not -1
    """
    for name, value in values.items():
        check_value(f"{section}.{name}", value, name)


def check_choice(key: str, value: Any, name: str = "") -> None:
    """Refuses a value, or an item of a list, that is none of the names of ``key``.

    Raises:
        UserError: naming the value and the choices.
    """
    choices, name = KEYS[key].allowed, name or key
    assert isinstance(choices, tuple)
    if isinstance(value, list):
        for item in value:
            if str(item).lower() not in choices:
                kind = name.rpartition(".")[2].removesuffix("s")
                raise UserError(f"{name}: unknown {kind} {short(item)}; choose from {_listed(choices, ', ')}")
    elif value not in choices:
        raise UserError(f"{name} must be {_listed(choices, ' or ')}, not {short(value)}")


def _listed(choices: Iterable[object], between: str) -> str:
    return between.join(map(str, choices))
