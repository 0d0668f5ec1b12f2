"""Writes a trained network as ONNX or TorchScript, compared with PyTorch, for use without this package."""

from __future__ import annotations

import argparse

from ..checkpoint import Checkpoint, load_checkpoint
from ..deploy.export import export, format_of
from ..errors import UserError
from ..files import check_output
from ..spec import Description
from .origin import tested_network

_NOT_FOR_DEPLOYMENT = (
    "{} the network of a search, which is not for deployment; train the genotype.json that it found, and export that"
)


def main(args: argparse.Namespace) -> int:
    file_format, weights, description = check(args)
    difference = export(weights, args.output, file_format, description, normalize=args.normalize)
    print(f"wrote {args.output}: {file_format}, within {difference:.1e} of PyTorch (relative to the largest value)")
    return 0


def check(args: argparse.Namespace) -> tuple[str, Checkpoint, Description]:
    """The format, the weights and the network, found before the work."""
    if args.cfg.model.name == "autoreid_search":
        raise UserError(_NOT_FOR_DEPLOYMENT.format("model.name autoreid_search is"))
    check_output("--output", args.output, {"--weights": args.weights})
    weights = load_checkpoint(args.weights, ())
    description = tested_network(weights, args.cfg, args.given)
    if description is None:
        raise UserError(_NOT_FOR_DEPLOYMENT.format(f"{args.weights} holds"))
    return args.format or format_of(args.output), weights, description
