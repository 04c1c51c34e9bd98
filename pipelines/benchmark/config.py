"""What is compared, and by how many samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from semu_diffusion import distributed
from semu_diffusion.options import at_least, option, require

__all__ = ["BenchmarkConfig"]


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of ``semu benchmark``."""

    erase: tuple[str, ...] = option(
        (), "classes or concepts to erase, one at a time; a+b: both at once (default: all that the model names)",
        metavar="NAME", positional=True,
    )  # fmt: skip
    model: str = option(
        "ddpm-cifar10", "an embedded model (ddpm-cifar10, tiny-sd), a folder or a Hub id; one of words needs a vocabulary.json",
        metavar="MODEL",
    )  # fmt: skip
    methods: tuple[str, ...] = option(
        ("default",), "methods to compare, by name, or JSON files of variants; all: every one of the model's kind",
        metavar="A,B,FILE.json", comma=True,
    )  # fmt: skip
    others: tuple[str, ...] = option(
        (), "what all methods but the default one erase (default: the same)", metavar="A,B,…", comma=True
    )
    output: str = option("runs/benchmark.md", "Markdown file for the tables", metavar="FILE")
    work: str = option("runs/benchmark", "folder for the measured rows; an earlier benchmark there is continued", metavar="DIR")
    images: int | None = option(
        None, "images of every class or prompt, before and after (default: 50 of a class, 10 of a prompt)", metavar="N",
        aliases=("--images-per-class", "--images-per-prompt"),
    )  # fmt: skip
    sampling_steps: int = option(20, "DDIM steps", metavar="N")
    sampling_precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the samples; auto: bf16 where the hardware has it"
    )
    guidance_scale: float | None = option(
        None, "classifier-free guidance w (default: 3 for classes, the model's own for concepts)", metavar="W"
    )
    classifier: str = option("auto", "judge, as in the erase commands", metavar="JUDGE")
    revival: bool = option(True, "measure what a learned vector brings back")
    probes: tuple[str, ...] = option(("all",), "probes without training, as in semu evaluate", metavar="A,B,…", comma=True)
    probe_samples: int = option(40, "images that every probe is counted in", metavar="N")
    unconditional_samples: int = option(200, "images without a condition, at w = 1", metavar="N")
    seeds: tuple[str, ...] = option(
        ("0",), "seeds of everything random; of several the page shows mean and spread", metavar="A,B,…", comma=True,
        aliases=("--seed",),
    )  # fmt: skip
    cache: str | None = option(
        None, "folder for what the original gives, which processes may share (default: original/ in the work folder)",
        metavar="DIR",
    )  # fmt: skip
    shard: str | None = option(
        None, "measure the K-th of N shares of the rows, in a folder of its own below the work folder; several processes "
        "that are launched together share the rows out by themselves", metavar="K/N",
    )  # fmt: skip
    tune: bool = option(
        False,
        "search each method's main setting first, on names and a seed that are not reported: as many values for all, and up to "
        "two further ones where the best lies at the edge",
    )
    tune_on: tuple[str, ...] = option(
        (), "what the search erases (default: two names that are not reported)", metavar="A,B,…", comma=True
    )
    merge: tuple[str, ...] = option(
        (), "measure nothing: write the page of the rows in these work folders and their shards", comma=True,
        metavar="DIR,DIR,…",
    )  # fmt: skip
    axes: str | None = option(
        None, "two columns that the picture of the front shows, to the right and upward, as in drift,revival (default: four "
        "panels)", metavar="X,Y",
    )  # fmt: skip
    device: str | None = option(None, "torch device (default: cuda if there is one, else cpu)", metavar="DEVICE")

    def __post_init__(self) -> None:
        require(
            all(seed.isdecimal() for seed in self.seeds) and len(self.seeds) > 0, "--seeds needs whole numbers, as in 0,1,2"
        )
        if self.shard is not None:
            found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
            whole = found is not None and 1 <= int(found[1]) <= int(found[2])
            require(whole, f"--shard {self.shard}: needs K/N with K from 1 to N, as in 3/16")
        require(
            not self.tune or self.share is None, "--tune searches in one process: its choice is for all rows, so no --shard"
        )
        require(self.tune or not self.tune_on, "--tune-on is what --tune searches on: give both")
        for name in ("sampling_steps", "probe_samples", "unconditional_samples"):
            at_least(self, name, 1)
        if self.images is not None:
            at_least(self, "images", 1)

    @property
    def share(self) -> tuple[int, int] | None:
        """(K, N) of the share of the rows that this process measures; None for all of them."""
        if self.shard is not None:
            index, _, count = self.shard.partition("/")
            return int(index), int(count)
        return (distributed.number() + 1, distributed.processes()) if distributed.processes() > 1 else None
