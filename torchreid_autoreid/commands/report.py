"""Writes the report of a search, or a comparison of several: one HTML page, from their log folders."""

from __future__ import annotations

import argparse

from ..errors import UserError
from ..report import write_report
from ..report.comparison import write_comparison


def main(args: argparse.Namespace) -> int:
    folders = [*args.folders, *args.log_dirs]
    if not folders:
        raise UserError("no log folder; give the data.save_dir of a search, or of several to compare")
    if len(folders) == 1:
        print(write_report(folders[0], args.output, trained=args.trained))
        return 0
    if args.trained:
        raise UserError("--trained belongs to the report of one search; leave it out, or give one log folder")
    if not args.output:
        raise UserError(f"--output FILE.html says where the comparison of {len(folders)} log folders goes; give it")
    print(write_comparison(folders, args.output))
    return 0
