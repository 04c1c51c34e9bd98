"""What every training command needs: an output folder with checkpoints, a log, a budget, and a polite end.

Batches and random numbers are a function of (seed, step) alone, so a checkpoint needs no random state and a run that was
stopped and resumed makes exactly the weights of one that was not (with a budget of steps: minutes are the clock's).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import as_new_files, write_text

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

__all__ = [
    "TrainingRun",
    "batch_indices",
    "dropout_of",
    "mirrored",
    "new_accelerator",
    "replace_folder",
    "step_generator",
    "whole_numbers",
]

CHECKPOINT = "checkpoint.pt"
LOG_EVERY = 50


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """The CPU generator of one step; ``stream`` tells apart its users."""
    import numpy as np
    import torch

    (number,) = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(number) % 2**63)


@contextmanager
def dropout_of(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generator, which dropout draws from, is that of this step; afterwards it is as it was."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(step_generator(seed, step, stream=2).initial_seed())
        yield


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> torch.Tensor:
    """Indices (batch_size,) of step ``step``: shuffled epochs one after the other, the short rest of each is left out."""
    import torch

    batch_size = min(batch_size, count)
    per_epoch = count // batch_size
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(count, generator=step_generator(seed, epoch, stream=1))
    return order[place * batch_size : (place + 1) * batch_size]


def mirrored(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image (N, C, H, W) mirrored left to right with probability one half."""
    import torch

    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def new_accelerator(precision: str) -> Accelerator:
    """Device and precision of a training: ``"bf16"``, ``"no"`` (float32), or ``"auto"``.

    ``auto`` is bf16 where the hardware multiplies it: recent GPUs, CPUs with AVX512-BF16 or AMX. Raises InputError in
    several processes: when to save and when to stop is decided by one clock.
    """
    import torch
    from accelerate import Accelerator

    from semu_diffusion.models.precision import has_bf16

    if precision == "auto":
        precision = "bf16" if has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "no"
    accelerator = Accelerator(mixed_precision=precision)
    if accelerator.num_processes > 1:
        raise InputError("training runs in one process; start it without `accelerate launch` or `torchrun`")
    return accelerator


def whole_numbers(flags: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """``flags`` with the words of the comma lists ``names`` as integers; InputError for a word that is none."""
    try:
        lists = {name: tuple(int(word) for word in flags[name]) for name in names if name in flags}
    except ValueError as error:
        shown = " or ".join(f"--{name.replace('_', '-')}" for name in names)
        raise InputError(f"{shown}: whole numbers with commas between them are needed ({error})") from error
    return {**flags, **lists}


def replace_folder(beside: Path, target: Path) -> None:
    """Put a finished folder in the place of the last one; a reader never finds half of either."""
    as_new_files(beside)
    last = target.with_name(target.name + ".last")
    shutil.rmtree(last, ignore_errors=True)
    if target.exists():
        os.replace(target, last)
    os.replace(beside, target)
    shutil.rmtree(last, ignore_errors=True)


class TrainingRun:
    """The output folder of one training: ``checkpoint.pt``, ``train.jsonl``, and when to save and to stop.

    ``config`` is the command's dataclass with ``output``, ``resume``, ``steps``, ``batch_size``, ``max_minutes`` and
    ``save_every`` (minutes). Fields marked ``budget=True`` in their metadata may change between a run and its resumption.
    """

    def __init__(self, config: Any, data_fingerprint: str) -> None:
        self.config = config
        self.data_fingerprint = data_fingerprint
        self.folder = Path(config.output).expanduser()
        self.step = 0
        self.seconds = 0.0
        self.stop_requested = False
        self._started: float | None = None
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--output {self.folder} is a file; name a folder")

    # -- checkpoints -------------------------------------------------------------------------------------------

    def restored(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, or None for a fresh start; InputError if it is another training's."""
        import torch

        path = self.folder / CHECKPOINT
        if not path.is_file() or not self.config.resume:
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            saved, state = json.loads(content["config"]), content["state"]
            self.step, self.seconds = int(content["step"]), float(content["seconds"])
        except Exception as error:  # a cut zip, a foreign pickle and a missing key come as a dozen classes
            raise InputError(f"{path} is not a readable checkpoint; --no-resume starts over ({error})") from error
        wanted = self._identity()
        other = [name for name in wanted if saved.get(name) != wanted[name]]
        if other:
            shown = ", ".join(f"{name}: {saved.get(name)} there, {wanted[name]} now" for name in other[:3])
            raise InputError(f"{path} is of other settings ({shown}); use another --output, or --no-resume to start over")
        self._drop_log_after(self.step)
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint beside and rename it."""
        import torch

        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / (CHECKPOINT + ".part")
        content = {
            "config": json.dumps(self._identity()),
            "step": self.step,
            "seconds": self.elapsed(),
            "state": state,
        }
        torch.save(content, beside)
        os.replace(beside, self.folder / CHECKPOINT)

    def _identity(self) -> dict[str, Any]:
        fixed = (field.name for field in dataclasses.fields(self.config) if not field.metadata.get("budget"))
        values = {name: getattr(self.config, name) for name in fixed}
        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**settings, "data_fingerprint": self.data_fingerprint}

    # -- budget ------------------------------------------------------------------------------------------------

    def loop(self, update: Callable[[], float], keep: Callable[[], None]) -> None:
        """Call ``update`` (one step; returns its loss) until the budget is used, ``keep`` now and then and at the end.

        Raises KeyboardInterrupt, after ``keep``, when Ctrl-C or SIGTERM came, and InputError when the loss is no number.
        """
        from tqdm import tqdm

        if self.step == 0:
            self._drop_log_after(-1)  # of a run that ended before its first checkpoint, or that is not gone on with
        self._started = saved = time.monotonic()
        before, first = self.seconds, self.step
        losses: list[float] = []
        hidden = not sys.stderr.isatty()
        with tqdm(total=self.config.steps, initial=first, desc="training", disable=hidden) as bar, self.polite_stop():
            while self.progress() < 1:
                losses.append(update())
                if not math.isfinite(losses[-1]):
                    raise InputError(f"the loss became {losses[-1]} in step {self.step + 1}; try a lower --lr")
                self.step += 1
                bar.update()
                if self.step % LOG_EVERY == 0 or self.step == self.config.steps:
                    speed = (self.step - first) * self.config.batch_size / max(self.elapsed() - before, 1e-6)
                    self.log(loss=round(sum(losses) / len(losses), 5), images_per_second=round(speed, 1))
                    losses.clear()
                if self.stop_requested or time.monotonic() - saved >= 60 * self.config.save_every:
                    keep()
                    saved = time.monotonic()
                if self.stop_requested:
                    kept = f"Step {self.step} is kept in {self.folder}; the same command goes on from there."
                    raise KeyboardInterrupt(kept)
            self.seconds, self._started = self.elapsed(), None
            keep()

    def elapsed(self) -> float:
        """Seconds of training, those before a resumption included."""
        return self.seconds + (0.0 if self._started is None else time.monotonic() - self._started)

    def progress(self) -> float:
        """Share of the budget that is used, 0 to 1: of the steps or of the minutes, whichever is further."""
        share = self.step / max(self.config.steps, 1)
        if self.config.max_minutes:
            share = max(share, self.elapsed() / (60 * self.config.max_minutes))
        return min(share, 1.0)

    @contextmanager
    def polite_stop(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM only set ``stop_requested``; a second one interrupts at once."""

        def request(number: int, frame: Any) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- log ---------------------------------------------------------------------------------------------------

    def log(self, **record: Any) -> None:
        """Append one line to train.jsonl: step, seconds, and what is given."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": self.step, "seconds": round(self.elapsed(), 1), **record}
        with (self.folder / "train.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _drop_log_after(self, step: int) -> None:
        """Lines later than the checkpoint describe steps that will be done again."""
        path = self.folder / "train.jsonl"
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            write_text(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))
