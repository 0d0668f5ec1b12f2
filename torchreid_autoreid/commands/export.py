"""Writes a trained network as ONNX or TorchScript, compared with PyTorch, for use without this package."""

from __future__ import annotations

import argparse

from ..config.keys import get_default_config
from ..deploy.export import export
from ..errors import UserError
from ..spec import Description


def main(args: argparse.Namespace) -> int:
    cfg = args.cfg
    if cfg.model.name == "autoreid_search":
        raise UserError(
            "model.name autoreid_search is the network of a search, which is not for deployment; "
            "train the genotype.json that it found (train.py), and export that"
        )
    description = None
    found = Description.of_checkpoint(args.weights)
    if found is None:
        description = Description.of_config(cfg)
    elif cfg.model.name not in (get_default_config().model.name, found[0].name):
        raise UserError(
            f"{args.weights} holds a network {found[0].name}, and model.name is {cfg.model.name}; leave it out"
        )
    difference = export(args.weights, args.output, args.format, description, normalize=args.normalize)
    print(f"wrote {args.output}: {args.format}, within {difference:.1e} of PyTorch (relative to the largest value)")
    return 0
