"""Writes the HTML report of a search from its log folder: the cells found, curves, alphas, configuration."""

from __future__ import annotations

import argparse
import sys

from torchreid_autoreid.cli import run
from torchreid_autoreid.report import write_report

EPILOG = """
examples:
  python projects/autoreid/report.py --log-dir log/search
  python projects/autoreid/report.py --log-dir log/search --output search.html

A search writes its report by itself when it ends; this command writes one for a search that is running or was stopped.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log-dir", required=True, metavar="DIR", help="log folder (data.save_dir) of a search")
    parser.add_argument("--output", metavar="FILE", help="the page to write (default: DIR/report.html)")
    args = parser.parse_args(argv)
    print(write_report(args.log_dir, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
