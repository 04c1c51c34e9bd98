"""``semu train``: the training commands, one a model."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.options import build_config, element_type
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog

__all__ = ["main", "parse"]

# model -> (its Recipe in the module of that name, what it is)
MODELS = {
    "ddpm": ("DDPM", "a class-conditional DDPM"),
    "classifier": ("Classifier", "the judge of its samples"),
    "autoencoder": ("Autoencoder", "the latent space of a text-to-image model"),
    "text-to-image": ("TextToImage", "a small Stable Diffusion pipeline"),
}


def _recipe(argv: Sequence[str]) -> Any:
    parser = Parser(prog="semu train", description="Train a model; --help after its name shows the settings.")
    models = parser.add_subparsers(dest="model", metavar="MODEL", required=True, parser_class=Parser)
    for name, (_, what) in MODELS.items():
        models.add_parser(name, help=what, add_help=False)
    if not argv or argv[0] not in MODELS:
        parser.parse_args(list(argv[:1]))  # prints help, or says that the model is unknown, and leaves
    return getattr(import_module(f"semu_diffusion.pipelines.train.{argv[0].replace('-', '_')}"), MODELS[argv[0]][0])


def parse(argv: Sequence[str]) -> Any:
    """The settings that a command line means, without running it."""
    recipe = _recipe(argv)
    parser = Parser(prog=f"semu train {argv[0]}", description=recipe.__doc__, epilog=epilog(recipe.examples))
    add_config_flags(parser, recipe.config_class)
    flags = vars(parser.parse_args(argv[1:]))
    return build_config(recipe.config_class, _whole_numbers(recipe.config_class, flags))


def main(argv: Sequence[str]) -> int:
    """Entry of ``semu train``; returns the exit code."""
    recipe = _recipe(argv)

    def job() -> int:
        print(recipe(parse(argv)).train())
        return 0

    return run_guarded(f"semu train {argv[0]}", job)


def _whole_numbers(config_class: type, flags: Mapping[str, Any]) -> dict[str, Any]:
    """``flags`` with the words of comma lists of numbers as integers; InputError for a word that is none."""
    hints, found = typing.get_type_hints(config_class), dict(flags)
    for name in [name for name in flags if element_type(hints[name]) == (int, True)]:
        try:
            found[name] = tuple(int(word) for word in flags[name])
        except ValueError as error:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag}: whole numbers with commas between them are needed ({error})") from error
    return found
