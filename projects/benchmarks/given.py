"""What the benchmarks are given: numbers for argparse's ``type``, and the results of earlier runs."""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchreid_autoreid.errors import UserError


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least so many."""

    def read(text: str) -> int:
        if not (text.isascii() and text.removeprefix("-").isdigit() and least <= int(text[:10]) and len(text) < 10):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to 999999999")
        return int(text)

    return read


def number(most: float = math.inf) -> Callable[[str], float]:
    """A number above 0, and below ``most``."""

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not 0 < found < most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no number above 0{f' and below {most}' if most < math.inf else ''}"
            )
        return found

    return read


def read(file: Path) -> dict[str, Any]:
    """What a file of results holds.

    Raises:
        UserError: naming a file that is no JSON object.
    """
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file} is no JSON of the benchmarks; remove it, and it is made again")
    return found


def rows_of(files: list[Path]) -> list[dict[str, Any]]:
    """The results that files have, one a line.

    Raises:
        UserError: naming a line that is none: a run that was killed while it wrote has left it.
    """
    found = []
    for file in files:
        for count, line in enumerate(file.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"line {count} of {file} is no result; remove the line, and its run is made again")
            found.append(row)
    return found
