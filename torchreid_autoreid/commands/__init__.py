"""The commands: each composes what the other rooms give, and runs it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from ..config.read import shipped_configs
from ..errors import UserError
from .console import run
from .options import COMMANDS, parse, told_once

__all__ = ["execute", "main"]

_CONFIGS = "Lists the configurations that --config-file finds by name."
_USAGE = "autoreid COMMAND [OPTION ...] [KEY VALUE ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``autoreid``; returns its exit status.

    >>> main(["configs"])  # doctest: +ELLIPSIS
    autoreid_search.yaml
    ...
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the imports last: an end without a word
        return run(lambda: execute(words[0], words[1:]))
    return run(lambda: _about(words))


def execute(name: str, argv: Sequence[str]) -> int:
    """Runs a command; its errors are raised.

    Nothing that takes long is imported before the options and the configuration have been read.
    """
    with told_once():
        args = parse(name, argv)
        if getattr(args, "print_config", False):
            print(args.cfg.dump(), end="")
            return 0
    # Before PyTorch reads it. A step is thousands of small operations; threads that spin for long while they wait for
    # one another make it up to a hundred times slower as soon as another program wants the same core, and threads that
    # never spin make it three times slower on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    dry = getattr(args, "dry_run", False)
    module = importlib.import_module(f".{'dry_run' if dry else name}", __name__)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # the imports have lasted till now
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return module.main(name, args) if dry else module.main(args)


def _about(words: Sequence[str]) -> int:
    """What ``autoreid`` says without a command."""
    if words in (["configs", "-h"], ["configs", "--help"]):
        print(f"usage: autoreid configs\n\n{_CONFIGS}")
    elif words == ["configs"]:
        print("\n".join(shipped_configs()))
    elif words == ["--version"]:
        print(_versions())
    elif not words or words[0] in ("-h", "--help"):
        print(_overview())
    elif words[0] in ("configs", "--version"):
        raise UserError(f"autoreid {words[0]} takes no {words[1]}; leave it out")
    else:
        raise UserError(f"unknown command {words[0]!r}; choose from {', '.join([*COMMANDS, 'configs'])}")
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {_USAGE}",
            "",
            "commands:",
            *lines,
            f"  {'configs':<{width}}  {_CONFIGS}",
            "",
            "autoreid COMMAND --help shows its options; autoreid --version the versions of what it runs on.",
        ]
    )


def _versions() -> str:
    import faiss
    import torch
    import torchreid

    from ..version import __version__

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"torchreid_autoreid {__version__} (torch {torch.__version__}, torchreid {torchreid.__version__}, "
        f"faiss {faiss.__version__}, {device})"
    )
