"""Writes the report of a search, one HTML page, from its log folder: the cells found, curves, alphas, configuration."""

from __future__ import annotations

import argparse

from ..report import write_report

EPILOG = """
A search writes its report by itself when it ends. This command writes it for a search that is still running, was
stopped, or ran elsewhere. The page needs no network and no other file: send it as it is.

The log folder is the data.save_dir of search.py. Read are
  history.jsonl   a line an epoch; a torn last line is left out, and the page says so
  genotype.json   the cells found so far
  config.yaml     the configuration; the page does without it

examples:
  python projects/autoreid/report.py --log-dir log/search
  python projects/autoreid/report.py --log-dir log/search --output search.html

The path of the page is printed. Exit status: 0 done; 2 the folder or one of its files is not what it should be.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log-dir", required=True, metavar="DIR", help="log folder (data.save_dir) of a search")
    parser.add_argument("--output", metavar="FILE", help="the page to write, *.html (default: DIR/report.html)")
    args = parser.parse_args(argv)
    print(write_report(args.log_dir, args.output))
    return 0
