"""``semu push``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.options import option
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND", "PushConfig"]


@dataclass(frozen=True)
class PushConfig:
    run: str = option(
        "", "a finished run of erase-concept or erase-class", metavar="RUN_FOLDER", positional=True, required=True
    )
    repo: str = option(
        "", "repository on the Hub; made if it is not there", metavar="OWNER/NAME", positional=True, required=True
    )
    private: bool = option(False, "make the repository private")


def run(config: PushConfig) -> int:
    from pathlib import Path

    from semu_diffusion.pipelines.patches.push import push

    print(push(Path(config.run), config.repo, config.private))
    return 0


COMMAND = Command(
    "semu push",
    "Upload a run folder's patch, LoRA files, card and numbers as a repository of the Hugging Face Hub.",
    PushConfig,
    run,
    examples=("semu push runs/cat me/without-cat --private",),
)
