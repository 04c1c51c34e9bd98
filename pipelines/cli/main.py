"""``semu``: look into a patch, merge it, draw it, score it again, compare methods, train models of your own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, epilog

__all__ = ["main", "parse"]

# command -> (module, function of the arguments after the command, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "info": ("cli.patch_commands", "what a patch holds: layers, ranks, base model"),
    "merge": ("cli.patch_commands", "write a model with the patch in its weights"),
    "grid": ("cli.patch_commands", "draw before and after, same seeds"),
    "evaluate": ("cli.patch_commands", "score a patch again: other counts, steps, judge"),
    "apply": ("cli.export_commands", "several patches on one model: how much they interfere"),
    "export": ("cli.export_commands", "write a patch as LoRA files or as a merged pipeline"),
    "push": ("cli.push", "upload a run's patch, LoRA files and card to the Hub"),
    "assess": ("cli.assess", "what a model can do before anything is erased, and whether it copies"),
    "benchmark": ("benchmark.classes", "erase classes in turn with several methods: one table"),
    "benchmark-concepts": ("benchmark.concepts", "erase every object and style in turn: one table"),
    "benchmark-subspace": ("benchmark.subspace", "time the subspace against torch.linalg.svd"),
    "train": ("cli.train", "train ddpm, classifier, autoencoder or text-to-image on your data"),
}

SEVERAL = ("cli.patch_commands", "cli.export_commands")  # modules of several commands: they are told which
EXAMPLES = (
    "semu info runs/cat/patch.safetensors",
    "semu merge runs/cat/patch.safetensors --output ddpm-without-cat",
    "semu grid runs/cat/patch.safetensors --output grid.png",
    "semu apply runs/cat runs/ship --output without-both",
    "semu export runs/no-cat --lora lora --merged without-cat",
    "semu evaluate runs/cat/patch.safetensors --images-per-class 500 --revival --output runs/cat-scored",
    "semu train ddpm --data uoft-cs/cifar10 --output train-runs/ddpm",
)


def parser() -> Parser:
    made = Parser(prog="semu", description=(__doc__ or "").replace("``", ""), epilog=epilog(EXAMPLES))
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, (_, what) in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    return made


def _split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command and its own arguments; exits with help or one line of error as argparse does."""
    if not argv or argv[0] not in COMMANDS:
        parser().parse_args(argv[:1])  # prints help, or says that the command is unknown, and leaves
    return argv[0], list(argv[1:])


def parse(argv: Sequence[str]) -> Any:
    """What a command line means, without running it. Raises InputError, or SystemExit with code 2, for a wrong one."""
    command, rest = _split(argv)
    module = import_module(f"semu_diffusion.pipelines.{COMMANDS[command][0]}")
    parse_rest: Callable[..., Any] = module.parse
    return parse_rest([command, *rest]) if COMMANDS[command][0] in SEVERAL else parse_rest(rest)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)

    def job() -> int:
        command, rest = _split(argv)
        module = import_module(f"semu_diffusion.pipelines.{COMMANDS[command][0]}")
        run: Callable[..., int] = module.main
        return run([command, *rest]) if COMMANDS[command][0] in SEVERAL else run(rest)

    return run_guarded("semu", job)


if __name__ == "__main__":
    sys.exit(main())
