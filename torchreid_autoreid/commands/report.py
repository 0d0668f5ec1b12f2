"""Writes the report of a search, one HTML page, from its log folder: the cells found, curves, alphas, configuration."""

from __future__ import annotations

import argparse

from ..report import write_report


def main(args: argparse.Namespace) -> int:
    print(write_report(args.log_dir, args.output))
    return 0
