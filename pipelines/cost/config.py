"""What ``semu benchmark-cost`` measures; light, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.options import at_least, byte_size, option, require

__all__ = ["PHASES", "CostConfig"]

PHASES = ("collect", "moments", "subspace", "train", "closed-form", "erase")


@dataclass(frozen=True)
class CostConfig:
    shape: Literal["tiny", "sd15", "sd21", "sdxl", "sd35-medium", "flux-dev", "dit-xl2"] = option(
        "tiny", "network: the embedded models, or random weights in the shape of a published one"
    )
    phase: tuple[str, ...] = option(
        PHASES[:-1],
        f"phases to measure, of {', '.join(PHASES)}; erase is a whole default erasure, of the embedded models alone",
        metavar="A,B,…",
        comma=True,
    )
    steps: int = option(3, "batches of collect and steps of train to measure", metavar="N")
    blocks: int | None = option(
        None, "keep so many blocks of each kind: what the whole network costs is then extrapolated", metavar="N"
    )
    batch_size: int = option(1, "images in a batch", metavar="N")
    size: int | None = option(None, "side of the picture in pixels (default: as published)", metavar="PIXELS")
    weights: Literal["fp32", "bf16"] = option("fp32", "dtype of the weights")
    memory: str | None = option(None, "budget of what collect keeps, as in the erasure's --memory", metavar="SIZE")
    gradient_checkpointing: bool = option(False, "compute activations again in the backward pass, on both sides")
    reference: bool = option(True, "measure the reference procedure beside ours")
    seconds: float = option(60.0, "bound on the time of the SVDs; larger matrices are then extrapolated", metavar="S")
    device: str | None = option(None, "device (default: cuda, else cpu)", metavar="DEVICE")
    seed: int = option(0, "seed of weights and inputs", metavar="SEED")
    json: bool = option(False, "print one JSON instead of the table")

    def __post_init__(self) -> None:
        unknown = [name for name in self.phase if name not in PHASES]
        require(not unknown and len(self.phase) > 0, f"--phase {','.join(unknown)}: choose from {', '.join(PHASES)}")
        require("erase" not in self.phase or self.shape == "tiny", "--phase erase needs weights that know a word: --shape tiny")
        require(self.shape != "tiny" or (self.blocks, self.size) == (None, None), "--shape tiny has its own size and blocks")
        require(self.size is None or (self.size >= 64 and self.size % 64 == 0), f"--size {self.size}: a multiple of 64")
        for name in ("steps", "batch_size"):
            at_least(self, name, 1)
        if self.blocks is not None:
            at_least(self, "blocks", 1)
        if self.memory is not None:
            byte_size(self.memory, "--memory")
