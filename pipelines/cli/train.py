"""``semu train``: the training commands, one a model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from semu_diffusion.pipelines.cli.flags import Parser

__all__ = ["main", "parse"]

MODELS = {
    "ddpm": "a class-conditional DDPM",
    "classifier": "the judge of its samples",
    "autoencoder": "the latent space of a text-to-image model",
    "text-to-image": "a small Stable Diffusion pipeline",
}


def _module(argv: Sequence[str]) -> Any:
    parser = Parser(prog="semu train", description="Train a model; --help after its name shows the settings.")
    models = parser.add_subparsers(dest="model", metavar="MODEL", required=True, parser_class=Parser)
    for name, what in MODELS.items():
        models.add_parser(name, help=what, add_help=False)
    if not argv or argv[0] not in MODELS:
        parser.parse_args(list(argv[:1]))  # prints help, or says that the model is unknown, and leaves
    return import_module(f"semu_diffusion.pipelines.train.{argv[0].replace('-', '_')}")


def parse(argv: Sequence[str]) -> Any:
    return _module(argv).parse(list(argv[1:]))


def main(argv: Sequence[str]) -> int:
    result: int = _module(argv).main(list(argv[1:]))
    return result
