"""Writes a trained network as ONNX or TorchScript, compared with PyTorch, for use without this package."""

from __future__ import annotations

import argparse

from ..config.keys import get_default_config
from ..deploy.export import FORMATS, export
from ..errors import UserError
from ..spec import Description
from .console import base_parser, config_from_args

EPILOG = """
examples:
  # a checkpoint of train.py says itself which network it holds
  python projects/autoreid/export.py --weights log/train/checkpoint-best.pth --format onnx --output reid.onnx
  # weights of torchreid's own training, with the network they belong to
  python projects/autoreid/export.py --weights model.pth.tar-60 --output osnet.onnx model.name osnet_x1_0

The file takes standardised images (B, 3, height, width) and gives features (B, D); its metadata hold genotype, size,
mean, standard deviation and version (the README shows how to read and use them).
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = base_parser(__doc__, EPILOG)
    parser.add_argument("--weights", metavar="FILE", required=True, help="a checkpoint or a state dict")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument("--output", metavar="FILE", required=True, help="where the network goes")
    parser.add_argument("--normalize", action="store_true", help="give features of length 1")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    cfg = config_from_args(args)
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
