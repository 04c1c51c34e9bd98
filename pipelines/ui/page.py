"""The page: what is picked, drawn, erased and opened. `Desk` does it and knows no gradio; `build` lays it out."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from threading import Lock
from typing import Any
from urllib.parse import quote

import torch

from semu_diffusion.domains.config import CONCEPT_PRESETS, PRESETS
from semu_diffusion.erase.config import EMBEDDED
from semu_diffusion.errors import InputError
from semu_diffusion.eval.images import to_pil, to_uint8
from semu_diffusion.options import build_config
from semu_diffusion.pipelines.runs.config import EraseClassConfig, EraseConceptConfig
from semu_diffusion.pipelines.runs.folder import status_of
from semu_diffusion.pipelines.ui.jobs import Job
from semu_diffusion.pipelines.ui.pictures import MAX_STRENGTH, Asked, Studio
from semu_diffusion.pipelines.ui.shelf import Choice, Run, Shelf

__all__ = ["HEAD", "STYLE", "Desk", "build", "theme"]

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "deep: less comes back, three times the cost": {"preset": "deep"},
    "closed form: the name alone, in seconds": {"method": "closed-form"},
}
MOST_SEEDS = 16


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
        self, model: str, condition: str, patches: Sequence[str], strength: float, seed: int, count: int, steps: int, w: float
    ) -> str:
        """The original's pictures and the erased ones, in HTML."""
        choice = self.shelf.model(model)
        asked = Asked(condition, tuple(range(int(seed), int(seed) + int(count))), int(steps), float(w))
        paths = [self.shelf.patch(name) for name in patches]
        return pictures(asked, *self.studio.draw(choice, paths, float(strength), asked), bool(patches), strength)

    def start(
        self, model: str, what: Sequence[str], method: str, judged: bool, steps: int | None, images: int, sampling_steps: int
    ) -> None:
        """Begin an erasure. Raises InputError while one is at work, and for settings that mean none."""
        choice, what = self.shelf.model(model), [word.strip() for word in what if word.strip()]
        flags: dict[str, Any] = {
            "model": choice.source, "device": self.studio.device, **METHODS[method], "images_per_condition": int(images),
            "sampling_steps": int(sampling_steps),
        }  # fmt: skip
        flags |= {} if judged else {"classifier": "none"}
        flags |= {"steps": int(steps)} if steps else {}
        flags["output"] = str(self.shelf.new_run("-".join(what)))
        config: EraseClassConfig | EraseConceptConfig
        if choice.kind == "class":
            config = build_config(EraseClassConfig, {**flags, "forget": tuple(what)}, PRESETS)
        else:
            config = build_config(EraseConceptConfig, {**flags, "concept": tuple(what)}, CONCEPT_PRESETS)
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
    same = torch.equal(to_uint8(original), to_uint8(erased))
    said = f"erased, strength {strength:g}" if patched else "no patch"
    note = "The same to the bit." if same else "The same seeds; only the patch differs."
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
    link = report_link(name, "Open its report") if (job.folder / "report.html").is_file() else ""
    return f'<div class="job"><h3>{text(job.title)}</h3>{end}{f"<ul>{lines}</ul>" if lines else ""}{link}</div>'


def report_link(name: str, words: str) -> str:
    return f'<a class="report" href="report/{quote(name)}" target="_blank" rel="noopener">{words}</a>'


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


# ------------------------------------------------------------------ gradio


def answered(function: Callable[..., str]) -> Callable[..., str]:
    """The function, with an InputError as a line on the page."""

    def call(*words: Any) -> str:
        try:
            return function(*words)
        except InputError as error:
            return problem(error)

    return call


def theme() -> Any:
    """System fonts alone: nothing is fetched from anywhere."""
    from gradio.themes import Base, Font

    sans = [Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")]
    mono = [Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "monospace")]
    return Base(primary_hue="cyan", neutral_hue="slate", font=sans, font_mono=mono)


def build(desk: Desk) -> Any:
    """The gradio page of a desk."""
    import gradio as gr

    models = list(desk.shelf.models())
    with gr.Blocks(title="semu_diffusion", analytics_enabled=False) as page:
        gr.HTML("<h1>Before and after the erasure</h1>", elem_id="title")
        model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model")
        with gr.Tab("Look"):
            look = _look(gr, desk, model)
        with gr.Tab("Erase"):
            erase = _erase(gr, desk, page, model, look["patches"])
        with gr.Tab("Runs") as tab:
            runs = gr.HTML(desk.runs, elem_id="runs")
            tab.select(answered(desk.runs), None, runs, show_progress="hidden")

        def pick(name: str) -> list[Any]:
            choice = desk.shelf.model(name)
            conditions, erasable = desk.studio.conditions(choice), desk.studio.erasable(choice)
            of_classes, fitting = choice.kind == "class", desk.fitting(choice)
            named = [(one or "no class", one) for one in conditions]
            return [
                gr.update(choices=named, value=conditions[0] if conditions and of_classes else None, visible=of_classes),
                gr.update(value=conditions[0] if conditions and not of_classes else "", visible=not of_classes),
                patches(gr, fitting, fitting[:1]),
                gr.update(value=desk.studio.guidance_scale(choice)),
                gr.update(choices=list(erasable), value=[], allow_custom_value=not of_classes),
                gr.update(value=choice.source == EMBEDDED),
            ]

        picked = [look["class"], look["prompt"], look["patches"], look["guidance"], erase["what"], erase["judged"]]
        gr.on([page.load, model.change], pick, model, picked, show_progress="minimal")
    return page


def patches(gr: Any, names: Sequence[str], value: Sequence[str] | None = None) -> Any:
    """The patches to pick from; those that are picked stay, unless there is a ``value``."""
    info = "of the runs here, those that were made for this model" if names else "no run here was made for this model yet"
    return gr.update(choices=list(names), info=info, **({} if value is None else {"value": list(value)}))


def _look(gr: Any, desk: Desk, model: Any) -> dict[str, Any]:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            classes = gr.Dropdown([], label="Class", elem_id="class")
            prompt = gr.Textbox(label="Prompt", visible=False, max_lines=2, elem_id="prompt")
            chosen = gr.Dropdown([], multiselect=True, label="Patches", elem_id="patches")
            strength = gr.Slider(0, MAX_STRENGTH, 1, step=0.05, label="Strength", elem_id="strength")
            seed = gr.Number(0, label="First seed", precision=0, minimum=0, elem_id="seed")
            count = gr.Slider(1, MOST_SEEDS, 1, step=1, label="Seeds", elem_id="count")
            with gr.Accordion("Sampling", open=False):
                steps = gr.Slider(1, 100, 20, step=1, label="DDIM steps", elem_id="steps")
                guidance = gr.Number(3, label="Guidance w", minimum=1, elem_id="guidance")
            draw = gr.Button("Draw", variant="primary", elem_id="draw")
        with gr.Column(scale=2, min_width=300):
            shown = gr.HTML('<p class="note">Pick what to draw.</p>', elem_id="pictures")

    def drawn(name: str, one: str | None, words: str, *rest: Any) -> str:
        of_classes = desk.shelf.model(name).kind == "class"
        return desk.draw(name, (one or "") if of_classes else words, *rest)

    asked = [model, classes, prompt, chosen, strength, seed, count, steps, guidance]
    gr.on([draw.click, strength.release, prompt.submit], answered(drawn), asked, shown, trigger_mode="always_last")
    return {"class": classes, "prompt": prompt, "patches": chosen, "guidance": guidance}


def _erase(gr: Any, desk: Desk, page: Any, model: Any, picked: Any) -> dict[str, Any]:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            what = gr.Dropdown([], multiselect=True, label="What to erase", elem_id="what")
            method = gr.Dropdown(list(METHODS), label="Method", elem_id="method")
            judged = gr.Checkbox(True, label="Let a judge look at the samples", elem_id="judged")
            with gr.Accordion("Settings", open=False):
                steps = gr.Number(None, label="Training steps (empty: the method's)", precision=0, elem_id="training-steps")
                images = gr.Number(16, label="Images of each class or prompt, before and after", precision=0, elem_id="images")
                sampling = gr.Number(20, label="DDIM steps of these images", precision=0, elem_id="sampling-steps")
            with gr.Row():
                start = gr.Button("Erase", variant="primary", min_width=120, elem_id="start")
                stop = gr.Button("Stop", variant="stop", min_width=120, interactive=False, elem_id="stop")
        with gr.Column(scale=2, min_width=300):
            refused = gr.HTML("", elem_id="refused")
            panel = gr.HTML(elem_id="job")
    timer = gr.Timer(0.7, active=False)

    def look() -> list[Any]:
        running = desk.running
        return [desk.progress(), gr.update(active=running), gr.update(interactive=not running), gr.update(interactive=running)]

    def begin(*words: Any) -> list[Any]:
        try:
            desk.start(*words)
        except InputError as error:
            return [problem(error), *look()]
        return ["", *look()]

    def found(name: str) -> Any:
        return gr.update() if desk.running else patches(gr, desk.fitting(desk.shelf.model(name)))

    state = [panel, timer, start, stop]
    page.load(look, None, state, show_progress="hidden")  # also for who comes while it is at work
    asked = [model, what, method, judged, steps, images, sampling]
    start.click(begin, asked, [refused, *state], show_progress="hidden")
    stop.click(lambda: (desk.stop(), look())[1], None, state, show_progress="hidden")
    timer.tick(look, None, state, show_progress="hidden").then(found, model, picked, show_progress="hidden")
    return {"what": what, "judged": judged}


HEAD = '<meta name="color-scheme" content="light dark">'
STYLE = """
:root { --color-accent: #0b6285; --slider-color: #0b6285; --link-text-color: #0b6285; }
.dark { --color-accent: #6cc3e6; --slider-color: #6cc3e6; --link-text-color: #6cc3e6; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.pair h3, .job h3 { margin: 0 0 .5rem; font-size: 1rem; }
.cells.many { display: grid; gap: .4rem; grid-template-columns: repeat(auto-fill, minmax(4.5rem, 1fr)); }
.cells figure { margin: 0; }
.cells img { width: 100%; height: auto; display: block; border-radius: 4px; }
.cells img.pixels { image-rendering: pixelated; }
.cells figcaption, .note { font-size: .8rem; color: var(--body-text-color-subdued); }
.problem { border-left: 4px solid #c2410c; padding-left: .75rem; }
.job progress { width: 100%; height: .75rem; accent-color: var(--color-accent); }
.job p { display: flex; gap: 1rem; justify-content: space-between; }
.runs { width: 100%; border-collapse: collapse; }
.runs th, .runs td { text-align: left; padding: .4rem .5rem; border-bottom: 1px solid var(--border-color-primary); }
.runs td { overflow-wrap: anywhere; }
"""
