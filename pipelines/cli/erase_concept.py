"""``erase-concept``: take an object, a style or any prompt out of Stable Diffusion, as a patch that other tools load."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from semu_diffusion.domains.prompts import listed
from semu_diffusion.options import build_config
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog
from semu_diffusion.pipelines.runs.config import EraseConceptConfig

__all__ = ["main", "parse", "run"]

EXAMPLES = (
    "erase-concept cat",
    'erase-concept "pencil sketch" --anchor sepia --output runs/no-sketch',
    'erase-concept "cassette player" --model my-stable-diffusion/ --anchor radio',
    'erase-concept "van gogh" --model model.safetensors --anchor "a painter" --forget-prompts "a field by van gogh"',
    "erase-concept cat --retain-prompts 'a photo of a dog' --layers cross-attention",
    "erase-concept --config runs/cat/run.json --output runs/cat-again",
)


def parse(argv: Sequence[str] | None = None) -> EraseConceptConfig:
    """The config that a command line means. Raises InputError, or SystemExit with code 2, for a wrong one."""
    parser = Parser(prog="erase-concept", description=(__doc__ or "").replace("``", ""), epilog=epilog(EXAMPLES))
    parser.add_argument("--config", metavar="RUN_JSON", help="settings of an earlier run; flags given here override them")
    add_config_flags(parser, EraseConceptConfig)
    flags = vars(parser.parse_intermixed_args(argv))  # words may stand after flags
    flags |= {name: listed(flags[name]) for name in ("retain_prompts", "forget_prompts", "paraphrases") if name in flags}
    return build_config(EraseConceptConfig, flags, None, flags.pop("config"))


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    given = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in words]
    files = [word for word in given if word.endswith(".txt")]  # `parse` takes their lines
    return run_guarded("erase-concept", lambda: run(parse(argv), files))


def run(config: EraseConceptConfig, files: Sequence[str] = ()) -> int:
    from semu_diffusion.pipelines.runs.erase import erase_concepts

    return erase_concepts(config, files)


if __name__ == "__main__":
    sys.exit(main())
