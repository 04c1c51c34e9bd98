"""The output folder of a training: its checkpoint, its log, when to save and when to stop.

Batches and random numbers are a function of (seed, step) alone, so a checkpoint needs no random state and a run that was
stopped and resumed gives exactly the weights of one that was not (with a budget of steps: minutes are the clock's).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semu_diffusion.errors import InputError
from semu_diffusion.files import ENDING, atomic_file, clear_temporaries, handled, write_json, write_text
from semu_diffusion.pipelines.cli.progress import bar
from semu_diffusion.pipelines.cli.signals import Stopped
from semu_diffusion.pipelines.runs.ownership import WRITTEN_BY, held, is_ours

if TYPE_CHECKING:
    import torch

__all__ = ["TrainingRun"]

CHECKPOINT, LOG, MODEL, ABOUT = "checkpoint.pt", "train.jsonl", "model", "training.json"
LOG_EVERY = 50


class TrainingRun:
    """``checkpoint.pt`` and ``train.jsonl`` of one training, and how much of its budget is used.

    ``config`` is a TrainingConfig; its fields marked ``budget`` may change between a run and its resumption.
    """

    def __init__(self, config: Any, data_fingerprint: str) -> None:
        self.config = config
        self.data_fingerprint = data_fingerprint
        self.folder = Path(config.output).expanduser()
        self.step = 0
        self.seconds = 0.0
        self.stop_requested = 0  # the signal, if one came
        self._started: float | None = None
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--output {self.folder} is a file; name a folder")

    # -- the folder --------------------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the folder is this training's alone, without what a killed one left half done. Raises InputError if not."""
        with held(self.folder):
            for name in (CHECKPOINT, LOG, MODEL, ABOUT):
                clear_temporaries(self.folder / name)
            yield

    def begin(self, about: Mapping[str, Any]) -> None:
        """Write training.json, by which the folder is known as a training's: ``about`` and the settings."""
        settings = {field.name: _as_json(getattr(self.config, field.name)) for field in dataclasses.fields(self.config)}
        write_json(self.folder / ABOUT, {**WRITTEN_BY, **about, "config": settings})

    def _require_ours(self, *names: str) -> None:
        there = [name for name in names if (self.folder / name).exists()]
        if there and not is_ours(self.folder / ABOUT):
            raise InputError(f"{self.folder} holds a {there[0]} that no training here wrote; choose another --output")

    # -- checkpoints -------------------------------------------------------------------------------------------

    def restored(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, or None for a fresh start.

        Raises InputError if it is another training's, or if the folder holds what would be replaced and is no training's.
        """
        import torch

        path = self.folder / CHECKPOINT
        self._require_ours(MODEL)
        if not path.is_file() or not self.config.resume:
            self._require_ours(CHECKPOINT, LOG)
            return None
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            saved, state = json.loads(content["config"]), content["state"]
            self.step, self.seconds = int(content["step"]), float(content["seconds"])
        except Exception as error:  # a cut zip, a foreign pickle and a missing key come as a dozen classes
            raise InputError(f"{path} is not a readable checkpoint; --no-resume starts over ({error})") from error
        wanted = self._identity()
        saved = {**_defaults(self.config), **saved}  # a setting that the checkpoint does not know came later
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
        content = {
            "config": json.dumps(self._identity()), "step": self.step, "seconds": self.elapsed(), "state": state,
        }  # fmt: skip
        with atomic_file(self.folder / CHECKPOINT) as beside, beside.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's own, after a full disk's
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

    def _identity(self) -> dict[str, Any]:
        fixed = (field.name for field in dataclasses.fields(self.config) if not field.metadata.get("budget"))
        settings = {name: _as_json(getattr(self.config, name)) for name in fixed}
        return {**settings, "data_fingerprint": self.data_fingerprint}

    # -- budget ------------------------------------------------------------------------------------------------

    def loop(self, update: Callable[[], torch.Tensor], save: Callable[[], None], export: Callable[[], None]) -> None:
        """Call ``update`` (one step; returns its loss) until the budget is used, ``save`` and ``export`` now and then.

        At the end only ``save``. Losses stay on their device until a line is logged or a checkpoint written, so that a GPU
        is never waited for. Raises Stopped, after both, when Ctrl-C or SIGTERM came, and InputError when a loss is not
        finite: no checkpoint of such weights is written.
        """
        if self.step == 0:
            self._drop_log_after(-1)  # of a run that ended before its first checkpoint, or that is started over
        self._started = saved = time.monotonic()
        before, first = self.seconds, self.step
        losses: list[torch.Tensor] = []
        shown = bar("training", total=self.config.steps, done=first, keep=True)
        with shown, self.graceful_shutdown():
            while self.progress() < 1:
                losses.append(update())
                self.step += 1
                shown.update()
                if self.step % LOG_EVERY == 0 or self.step == self.config.steps:
                    mean = self._mean(losses)
                    speed = (self.step - first) * self.config.batch_size / max(self.elapsed() - before, 1e-6)
                    self.log(loss=round(mean, 5), images_per_second=round(speed, 1))
                    losses.clear()
                if self.stop_requested or time.monotonic() - saved >= 60 * self.config.save_every:
                    self._mean(losses)
                    save()
                    export()
                    saved = time.monotonic()
                if self.stop_requested:
                    said = f"Step {self.step} is kept in {self.folder}; the same command resumes there."
                    raise Stopped(self.stop_requested, said)
            self._mean(losses)
            self.seconds, self._started = self.elapsed(), None
            save()

    def _mean(self, losses: Sequence[torch.Tensor]) -> float:
        """The mean of the last steps' losses, read from their device at once; InputError for one that is not finite."""
        import torch

        values = torch.stack(list(losses)).tolist() if losses else []
        for step, value in enumerate(values, self.step - len(values) + 1):
            if not math.isfinite(value):
                raise InputError(f"the loss became {value} in step {step}; try a lower --lr")
        return sum(values) / max(len(values), 1)

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
    def graceful_shutdown(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM only set ``stop_requested``; a second one interrupts at once."""

        def request(number: int, frame: Any) -> None:
            if self.stop_requested:
                raise Stopped(number)
            self.stop_requested = number

        with handled(request, *ENDING):
            yield

    # -- log ---------------------------------------------------------------------------------------------------

    def log(self, **record: Any) -> None:
        """Append one line to train.jsonl: step, seconds, and what is given."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": self.step, "seconds": round(self.elapsed(), 1), **record}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _drop_log_after(self, step: int) -> None:
        """Lines later than the checkpoint describe steps that will be done again."""
        path = self.folder / LOG
        if path.is_file():
            whole = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_text(path, "".join(line + "\n" for line in whole))


def _step(line: str) -> float:
    """The step of a line of the log; beyond all steps for one that was written in part only."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _as_json(value: Any) -> Any:
    """The value as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _defaults(config: Any) -> dict[str, Any]:
    return {field.name: _as_json(field.default) for field in dataclasses.fields(config)}
