"""What the page does when something is picked, drawn, erased or stopped, in HTML; no gradio here."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from threading import Lock
from typing import Any
from urllib.parse import quote

import torch

from semu_diffusion.domains.config import PRESETS
from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import to_pil
from semu_diffusion.options import build_config
from semu_diffusion.pipelines.runs.config import EraseClassConfig, EraseConceptConfig
from semu_diffusion.pipelines.runs.folder import status_of
from semu_diffusion.pipelines.ui.jobs import Job
from semu_diffusion.pipelines.ui.pictures import Asked, Studio
from semu_diffusion.pipelines.ui.shelf import REPORT, Choice, Run, Shelf

__all__ = ["METHODS", "Desk", "problem", "text"]

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "closed form: the name alone, in seconds": {"method": "closed-form"},
}


@dataclass
class Desk:
    """The shelf, the studio, and the erasure that is at work or was the last one."""

    shelf: Shelf
    studio: Studio
    job: Job | None = None
    _lock: Lock = field(default_factory=Lock)

    def fitting(self, choice: Choice) -> list[str]:
        """The runs whose patches go on this model, the newest first."""
        runs = {run.path / "patch.safetensors": run.name for run in self.shelf.runs().values() if run.patch}
        return [runs[path] for path in self.studio.fitting(choice, list(runs))]

    def draw(
        self, model: str, condition: str, patches: Sequence[str], strength: float, seed: int | None, count: int, steps: int,
        w: float | None,
    ) -> str:  # fmt: skip
        """The original's pictures and the erased ones, in HTML."""
        choice, first = self.shelf.model(model), int(seed or 0)
        asked = Asked(condition, tuple(range(first, first + int(count))), int(steps), float(w or 1))
        paths = [self.shelf.patch(name) for name in patches]
        return pictures(asked, *self.studio.draw(choice, paths, float(strength), asked), bool(patches), strength)

    def start(
        self, model: str, what: Sequence[str], method: str, judged: bool, steps: int | None, images: int | None,
        sampling_steps: int | None,
    ) -> None:  # fmt: skip
        """Begin an erasure. Raises InputError while one is at work, and for settings that mean none."""
        choice, what = self.shelf.model(model), [word.strip() for word in what if word.strip()]
        flags: dict[str, Any] = {
            "model": choice.source,
            "device": self.studio.device,
            **METHODS[method],
            **({} if judged else {"classifier": "none"}),
        }
        numbers = {"steps": steps, "images_per_condition": images, "sampling_steps": sampling_steps}
        flags |= {name: int(value) for name, value in numbers.items() if value}  # an empty field is 0
        flags["output"] = str(self.shelf.new_run("-".join(what)))
        config: EraseClassConfig | EraseConceptConfig
        if choice.kind == "class":
            config = build_config(EraseClassConfig, {**flags, "forget": tuple(what)}, PRESETS)
        else:
            config = build_config(EraseConceptConfig, {**flags, "concept": tuple(what)})
        with self._lock:
            if self.running:
                raise InputError("an erasure is at work: stop it, or wait for its end")
            self.job = Job(config)

    @property
    def running(self) -> bool:
        return self.job is not None and not self.job.over

    def stop(self) -> None:
        if self.job is not None:
            self.job.stop()

    def close(self) -> None:
        """Stop the erasure that is at work, and wait until its folder is in order."""
        if self.job is not None and not self.job.over:
            self.job.stop()
            self.job.join(30)

    def progress(self) -> str:
        """How far the erasure is, in HTML."""
        return "" if self.job is None else job_panel(self.job, self.shelf)

    def runs(self) -> str:
        """Every run with its status and its report, in HTML."""
        return runs_table(list(self.shelf.runs().values()))


# ------------------------------------------------------------------ HTML


def text(words: object) -> str:
    """Words of others for HTML, and for gradio's templates, which would read braces and dollars."""
    return escape(str(words)).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def problem(words: object) -> str:
    return f'<p class="problem" role="alert">{text(words)}</p>'


def pictures(asked: Asked, original: torch.Tensor, erased: torch.Tensor, patched: bool, strength: float) -> str:
    """Original and erased side by side, seed by seed, without loss."""
    said = f"erased, strength {strength:g}" if patched else "no patch"
    note = "The same to the bit." if torch.equal(original, erased) else "The same seeds; only the patch differs."
    blocks = [_block("original", "original", asked, original), _block(said, "erased", asked, erased)]
    return f'<div class="pair">{"".join(blocks)}</div><p class="note" role="status">{note}</p>'


def _block(title: str, side: str, asked: Asked, images: torch.Tensor) -> str:
    what = text(asked.condition) or "no condition"
    small = " pixels" if images.shape[-1] <= 64 else ""
    cells = [
        f'<figure><img class="{side}{small}" src="{_png(image)}" alt="{side}: {what}, seed {seed}">'
        f"<figcaption>seed {seed}</figcaption></figure>"
        for seed, image in zip(asked.seeds, images, strict=True)
    ]
    many = " many" if len(cells) > 1 else ""
    return f'<section><h3>{text(title)}</h3><div class="cells{many}">{"".join(cells)}</div></section>'


def _png(image: torch.Tensor) -> str:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def job_panel(job: Job, shelf: Shelf) -> str:
    state, name = job.state, job.folder.relative_to(shelf.folder).as_posix()
    lines = "".join(f"<li>{text(line)}</li>" for line in state.said)
    if state.code is None:
        bar = f'max="{state.total}" value="{state.done}"' if state.total else ""
        doing = "stopping" if state.stopping else text(" · ".join(filter(None, (state.stage, state.detail))))
        count = f"{state.done} of {state.total}" if state.total else ""
        return (
            f'<div class="job"><h3>Erasing {text(job.title)}</h3><progress {bar} aria-label="{doing}"></progress>'
            f'<p role="status"><span>{doing}</span> <span>{count}</span></p></div>'
        )
    status = status_of(job.folder) or "not begun"
    end = f'<p role="status">{text(name)}: <strong class="status">{text(status)}</strong></p>'
    link = report_link(name, "Open its report") if (job.folder / REPORT).is_file() else ""
    return f'<div class="job"><h3>{text(job.title)}</h3>{end}{f"<ul>{lines}</ul>" if lines else ""}{link}</div>'


def report_link(name: str, words: str) -> str:
    return f'<a class="report" href="report/{quote(name)}/{REPORT}" target="_blank" rel="noopener">{words}</a>'


def runs_table(runs: Sequence[Run]) -> str:
    if not runs:
        return "<p>No run lies here yet: erase something, and it does.</p>"
    rows = [
        f'<tr><th scope="row">{text(run.name)}</th><td>{text(run.status)}</td>'
        f"<td>{report_link(run.name, 'report') if run.report else ''}</td></tr>"
        for run in runs
    ]
    head = '<thead><tr><th scope="col">run</th><th scope="col">status</th><th scope="col">page</th></tr></thead>'
    return f'<table class="runs">{head}<tbody>{"".join(rows)}</tbody></table>'
