"""``erase-concept``."""

from __future__ import annotations

import sys
from typing import Any

from semu_diffusion.domains.named_questions import read_questions
from semu_diffusion.domains.prompts import is_listed, listed
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.runs.config import EraseConceptConfig

__all__ = ["COMMAND", "main", "parse"]

LISTED = ("retain_prompts", "forget_prompts", "paraphrases")


def run(config: EraseConceptConfig) -> int:
    from semu_diffusion.pipelines.runs.erase import erase_concepts

    return erase_concepts(config)


def read(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with what files say in the files' place: lines of prompts, a JSON object of questions.

    Raises InputError for a file that holds none.
    """
    given = {name: flags[name] for name in LISTED if name in flags}
    files = tuple(word for words in given.values() for word in words if is_listed(word))
    lines: dict[str, Any] = {name: listed(words) for name, words in given.items()}
    if "questions" in flags:
        files, lines["questions"] = (*files, flags["questions"]), read_questions(flags["questions"])
    return {**flags, **lines, **({"prompt_files": files} if files else {})}


COMMAND = Command(
    "erase-concept",
    "Take an object, a style or any other words out of a text-to-image model, as a patch that other tools load.",
    EraseConceptConfig,
    run,
    examples=(
        "erase-concept cat",
        "erase-concept cat --method closed-form",
        'erase-concept "pencil sketch" --anchor sepia --output runs/no-sketch',
        'erase-concept "cassette player" --model my-stable-diffusion/ --anchor radio',
        'erase-concept "van gogh" --model model.safetensors --anchor "a painter" --forget-prompts "a field by van gogh"',
        "erase-concept cat --retain-prompts 'a photo of a dog' --layers cross-attention",
        "erase-concept cat --questions examples/questions.json",
        "erase-concept --config runs/cat/run.json --output runs/cat-again",
    ),
    replays=True,
    read=read,
)
parse, main = COMMAND.parse, COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
