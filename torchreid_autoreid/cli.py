"""What the commands in ``projects/autoreid`` share: options, exit statuses, the log."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from yacs.config import CfgNode

from .config import load_config
from .errors import Interrupted, UserError

__all__ = ["base_parser", "config_from_args", "run", "setup_logging"]


def base_parser(description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """The options of torchreid's ``scripts/main.py``."""
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="YAML", default="", help="configuration; see configs/")
    parser.add_argument("-s", "--sources", metavar="NAME", nargs="+", help="datasets to train on")
    parser.add_argument("-t", "--targets", metavar="NAME", nargs="+", help="datasets to test on")
    parser.add_argument("--transforms", metavar="NAME", nargs="+", help="augmentation, such as random_flip random_crop")
    parser.add_argument("--root", metavar="DIR", default="", help="folder that holds the datasets (default: reid-data)")
    parser.add_argument(
        "opts",
        metavar="KEY VALUE",
        nargs=argparse.REMAINDER,
        default=[],
        help="any keys of the configuration, such as train.max_epoch 20; they override the file",
    )
    return parser


def config_from_args(args: argparse.Namespace) -> CfgNode:
    """The configuration that the options ask for."""
    return load_config(
        args.config_file,
        args.opts,
        root=args.root,
        sources=args.sources,
        targets=args.targets,
        transforms=args.transforms,
    )


def run(main: Callable[[], int | None]) -> int:
    """Runs a command and gives its exit status.

    0 done; 2 the user's mistake, told in one line on stderr; 130 interrupted, with the path to resume from. Anything else
    is a fault of the program's and keeps its traceback.
    """
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(str(stop), file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def setup_logging(save_dir: Path, name: str) -> None:
    """Sends the log to the terminal and, with the details, to ``save_dir/name.log``.

    torchreid prints; what it prints goes into the same two places. A progress bar is written to stderr and stays out of the log.
    """
    save_dir.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(save_dir / f"{name}.log", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    to_terminal = logging.StreamHandler(sys.stdout)
    to_terminal.setLevel(logging.INFO)
    logger = logging.getLogger("torchreid_autoreid")
    logger.handlers[:] = [to_file, to_terminal]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    warnings.showwarning = lambda message, category, *_: logger.warning("%s: %s", category.__name__, message)
    sys.stdout = _Printed(sys.stdout, to_file)  # type: ignore[assignment]


class _Printed:
    """A stdout that also writes whole printed lines into the log file."""

    def __init__(self, stream: TextIO, to_file: logging.Handler) -> None:
        self.stream, self.to_file, self.line = stream, to_file, ""

    def write(self, text: str) -> int:
        self.line += text
        *lines, self.line = self.line.split("\n")
        for line in filter(str.strip, lines):
            self.to_file.emit(logging.makeLogRecord({"msg": line.expandtabs(2), "levelno": logging.INFO}))
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
