"""Writes the report of a search, or a comparison of several: one HTML page, from their log folders."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UserError, printable


def main(args: argparse.Namespace) -> int:
    folders = [*args.folders, *args.log_dirs]
    check_options(args, folders)
    if len(folders) > 1:
        from ..report.comparison import write_comparison

        print(printable(write_comparison(folders, args.output)))
        return 0
    if args.serve:
        from .serve import serve

        return serve(args, folders[0])
    from ..report import write_report

    print(printable(write_report(folders[0], args.output, **report_kwargs(args, folders[0]))))
    return 0


def check_options(args: argparse.Namespace, folders: list[str]) -> None:
    """Refuses what contradicts itself, or would have no effect."""
    if not folders:
        raise UserError("no log folder; give the data.save_dir of a search, or of several to compare")
    if len(folders) > 1:
        for option in ("trained", "beside", "embed_images", "serve"):
            if getattr(args, option):
                name = option.replace("_", "-")
                raise UserError(f"--{name} belongs to the report of one search; leave it out, or give one log folder")
        if not args.output:
            raise UserError(f"--output FILE.html says where the comparison of {len(folders)} log folders goes; give it")
    if args.embed_images is not None and args.embed_images < 0:
        raise UserError(f"--embed-images must be at least 0, not {args.embed_images}")
    if args.serve and args.output:
        raise UserError("--serve shows the page and writes no file; leave out --output, or --serve")
    if args.port is not None and not args.serve:
        raise UserError("--port is an option of --serve; give that too, or leave it out")


def report_kwargs(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """What the page of a search shows besides its log."""
    from ..data.images import small_jpeg
    from .costs import count_costs_of_log

    return {
        "trained": args.trained,
        "beside": args.beside,
        "costs": count_costs_of_log(folder, [*args.trained, *args.beside]),
        "read_jpeg": small_jpeg,
        "pictures": args.embed_images or 0,
    }
