"""The recipe of a training: its settings, and everything that all trainings do alike, from the data to the model card.

At every checkpoint the averaged weights are written to ``<output>/model``, which can be used while the training goes on.
"""

from __future__ import annotations

import copy
import os
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from semu_diffusion.errors import InputError
from semu_diffusion.files import atomic_folder, strip_local_paths, write_text
from semu_diffusion.options import element_type, option, require
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.data.folders import NoSplit
from semu_diffusion.pipelines.data.images import ImageSet, load_images, to_stderr
from semu_diffusion.pipelines.train.card import Card, model_card
from semu_diffusion.pipelines.train.run import TrainingRun
from semu_diffusion.pipelines.train.step import batch_indices, cosine_rate, step_dropout, step_generator

if TYPE_CHECKING:
    import torch

__all__ = ["Recipe", "TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that every training has; one marked ``budget`` may change between a run and its resumption."""

    fewest_steps: ClassVar[int] = 1

    data: str = option("", "Hub id, or folder: parquet, one folder per class, or metadata.csv", budget=True, metavar="DATASET")
    output: str = option("", "folder for the checkpoint, the log and model/", budget=True, metavar="DIR")
    steps: int = option(20_000, "optimiser steps in all", budget=True)
    max_minutes: float = option(0.0, "minutes of training in all; 0 for no limit", budget=True)
    batch_size: int = option(64, "images a step")
    lr: float = option(1e-3, "peak learning rate")
    final_lr: float = option(1e-5, "learning rate at the end")
    warmup: float = option(0.03, "share of the training in which the rate rises")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    clip: float = option(1.0, "largest gradient norm; 0 for no limit")
    ema: float = option(
        0.999, "largest decay of the averaged weights (reached slowly: (1 + step) / (10 + step)); 0 for no average"
    )
    precision: Literal["auto", "bf16", "no"] = option("auto", "bf16 where the hardware has it, or no (float32)")
    compile: bool = option(False, "torch.compile the networks", budget=True)
    seed: int = option(0, "seed of the weights, the order and all that is random in a step")
    save_every: float = option(5.0, "minutes between checkpoints", budget=True)
    resume: bool = option(True, "go on from the checkpoint in --output", budget=True)
    export_only: bool = option(False, "only write model/ (and its card) from the checkpoint, no training", budget=True)

    def __post_init__(self) -> None:
        require(bool(self.data and self.output), "--data and --output are needed")
        require(self.batch_size >= 1 and self.steps >= self.fewest_steps, "--batch-size and --steps must be positive")
        require(self.lr > 0 and self.final_lr >= 0, "--lr must be positive, --final-lr not negative")
        require(min(self.max_minutes, self.clip, self.weight_decay) >= 0, "--max-minutes, --clip, --weight-decay: not negative")
        require(0 <= self.ema < 1 and 0 <= self.warmup < 1, "--ema and --warmup must be at least 0 and less than 1")

    def for_images(self, count: int) -> TrainingConfig:
        """These settings for a data set of ``count`` images."""
        return self


class Recipe(ABC):
    """One training. A subclass gives `build`, `loss`, `write` and `card`, and `measure` if there is something to measure."""

    name: ClassVar[str]  # as in ``semu train NAME``
    help: ClassVar[str]
    config_class: ClassVar[type[TrainingConfig]]
    examples: ClassVar[tuple[str, ...]]
    library_name: ClassVar[str] = "diffusers"  # of the model card, for the Hub
    pipeline_tag: ClassVar[str | None] = None
    early_model: ClassVar[bool] = True  # a model/ at every checkpoint, not only at the end
    channels_last: ClassVar[bool] = False  # on a CPU too

    config: TrainingConfig

    @classmethod
    def command(cls) -> Command:
        """``semu train`` of this recipe."""

        def run(config: Any) -> int:
            print(cls(config).train())
            return 0

        def read(flags: dict[str, Any]) -> dict[str, Any]:
            return whole_numbers(cls.config_class, flags)

        return Command(f"semu train {cls.name}", cls.help, cls.config_class, run, cls.examples, read=read)

    def __init__(self, config: Any) -> None:
        import torch

        from semu_diffusion.models.precision import autocast

        self.config = config
        self.data = self.load("train")
        self.config = config.for_images(len(self.data))
        self.run = TrainingRun(self.config, self.data.fingerprint)
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.device = found or torch.device("cpu")
        self.autocast = autocast("fp32" if config.precision == "no" else config.precision, self.device)

    # -- what a training is ------------------------------------------------------------------------------------

    def load(self, split: str) -> ImageSet:
        """The data of a split; InputError if there is none."""
        return load_images(self.config.data, split, to_stderr)

    def judges(self) -> Iterable[tuple[str | None, Sequence[str]]]:
        """The judges of the finished model, if any, with the names that each is asked for."""
        return ()

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """The networks, on the CPU; layers draw their initial weights from the global generator, which is seeded."""

    def parts(self) -> Iterable[torch.nn.Module]:
        """The networks that a step calls, for ``--compile``."""
        return (self.model,)

    def optimizer(self) -> torch.optim.Optimizer:
        import torch

        fused = self.device.type == "cuda"
        config = self.config
        return torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused)

    def rate(self, progress: float) -> float:
        """The learning rate after this share of the training."""
        return cosine_rate(progress, self.config)

    @abstractmethod
    def loss(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The loss of the images ``chosen`` (n,); every draw is the generator's, which lives on the training's device."""

    @abstractmethod
    def write(self, folder: Path, model: Any) -> None:
        """Save the averaged model, on the CPU in half precision, in a new folder."""

    def measure(self, folder: Path, final: bool) -> dict[str, Any]:
        """Numbers of the model in the folder, for the log and the card; ``final`` at the end of the training."""
        return {}

    @abstractmethod
    def card(self, model: Any, measured: Mapping[str, Any]) -> Card:
        """What the model card says of this training; of numbers only those that were measured."""

    # -- what is the same for all ------------------------------------------------------------------------------

    def train(self) -> Path:
        """Train (or go on), write the averaged weights as ``<output>/model`` with its card, and return that folder."""
        require(int(os.environ.get("WORLD_SIZE", 1)) == 1, "training runs in one process; start it without a launcher")
        with self.run.held():
            self._train()
        return self.run.folder / "model"

    def _train(self) -> None:
        from semu_diffusion.eval.judges.judge import load_judge
        from semu_diffusion.pipelines.runs.provenance import environment

        state = self.run.restored()
        missing = self.config.export_only and state is None
        require(not missing, f"--export-only: {self.run.folder} holds no checkpoint")
        for judge, names in self.judges():
            if judge:
                load_judge(judge, names)  # a wrong name is reported now, not after the training
        self._prepare(state)
        self.run.begin({"training": self.name, **environment(self.device, self.config.precision)})
        if not self.config.export_only:
            self.run.loop(self._step, self._save, self._export)
        self._export(final=True)

    @cached_property
    def test(self) -> ImageSet | None:
        """The test split; a data set without one is fine, and one that cannot be read is said to be left out."""
        try:
            return self.load("test")
        except NoSplit:
            return None
        except InputError as error:
            to_stderr(f"the test split is left out: {error}")
            return None

    def on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Data on the training's device, so that a step copies nothing; where it is if a third of the memory is too little."""
        import torch

        if self.device.type == "cuda" and tensor.nbytes > torch.cuda.mem_get_info(self.device)[0] / 3:
            return tensor
        return tensor.to(self.device)

    def take(self, tensor: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The chosen rows of data, on the training's device."""
        return tensor[chosen.to(tensor.device)].to(self.device, non_blocking=True)

    def _prepare(self, state: dict[str, Any] | None) -> None:
        import torch
        from diffusers.training_utils import EMAModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = self.build()
        # measured: on a CPU channels_last is slower than the plain layout, but for compiled networks; on a GPU faster
        plain = self.device.type == "cpu" and not self.config.compile and not self.channels_last
        layout = torch.contiguous_format if plain else torch.channels_last
        self.model: Any = model.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]
        self._optimizer = self.optimizer()
        ema = self.config.ema
        self._ema = EMAModel(self.model.parameters(), decay=ema, foreach=True) if ema else None
        if state is not None:
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self._ema is not None:
                self._ema.load_state_dict(state["ema"])
                self._ema.to(self.device)
        if self.config.compile:
            for part in self.parts():
                part.compile()
        self.model.train()

    def _step(self) -> torch.Tensor:
        import torch

        config, step = self.config, self.run.step
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(self.run.progress())
        chosen = batch_indices(len(self.data), config.batch_size, config.seed, step, self.device)
        with step_dropout(config.seed, step, self.device):
            loss = self.loss(chosen, step_generator(config.seed, step, device=self.device))
            loss.backward()  # type: ignore[no-untyped-call]
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._ema is not None:
            self._ema.step(self.model.parameters())
        return loss.detach()

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}
        self.run.save(state if self._ema is None else {**state, "ema": self._ema.state_dict()})

    def _export(self, final: bool = False) -> None:
        """Write ``<output>/model`` with its card, beside and then renamed."""
        if not final and not self.early_model:
            return
        model = self._averaged()
        with atomic_folder(self.run.folder / "model", overwrite=True) as beside:
            self.write(beside, model)
            strip_local_paths(beside)
            measured = self.measure(beside, final)
            if measured:
                self.run.log(**measured)
            write_text(beside / "README.md", model_card(self, self.card(model, measured)))

    def _averaged(self) -> Any:
        """A copy of the networks with the averaged weights, on the CPU in half precision."""
        found = copy.deepcopy(self.model)
        if self._ema is not None:
            self._ema.copy_to(found.parameters())
        for parameter in found.parameters():
            parameter.data = parameter.data.cpu().half().contiguous()
        return found.cpu()


def whole_numbers(config_class: type, flags: Mapping[str, Any]) -> dict[str, Any]:
    """``flags`` with the words of comma lists of numbers as integers; InputError for a word that is none."""
    hints, found = typing.get_type_hints(config_class), dict(flags)
    for name in [name for name in flags if element_type(hints[name]) == (int, True)]:
        try:
            found[name] = tuple(int(word) for word in flags[name])
        except ValueError as error:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag}: whole numbers with commas between them are needed ({error})") from error
    return found
