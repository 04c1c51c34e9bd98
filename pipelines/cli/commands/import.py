"""``semu import``."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.options import option, require
from semu_diffusion.pipelines.cli.command import Command

__all__ = ["COMMAND"]


@dataclass(frozen=True)
class ImportConfig:
    """A research checkpoint, and the folder that it becomes."""

    checkpoint: str = option("", "ckpt.pth of such a model", metavar="CKPT", positional=True, required=True)
    output: str = option("", "folder to write, in diffusers layout", metavar="DIR", positional=True, required=True)
    class_names: tuple[str, ...] = option(
        (), "names of its classes, in order (default: their numbers)", metavar="A,B,…", comma="names"
    )
    ema: bool = option(False, "take the moving average of the weights, if the file has one")
    size: int | None = option(None, "pixels a side (default: by where its attention is)", metavar="N")

    def __post_init__(self) -> None:
        require(self.size is None or self.size > 0, f"--size {self.size}: must be at least 1")


def run(config: ImportConfig) -> int:
    from semu_diffusion.pipelines.patches.import_ddpm import import_ddpm

    print(import_ddpm(config.checkpoint, config.output, config.class_names, config.ema, config.size))
    return 0


COMMAND = Command(
    "semu import",
    "Make a model for erase-class of a DDPM checkpoint of Selective Amnesia, SalUn or guided-diffusion (64 or 256 pixels).",
    ImportConfig,
    run,
    examples=(
        "semu import ckpt.pth salun-cifar10",
        "semu import ckpt.pth salun-cifar10 --class-names airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck",
        "semu import 64x64_diffusion.pt guided-imagenet-64",
    ),
)
