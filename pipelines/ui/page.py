"""The page in gradio: what stands where, and what of the `Desk` is called when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from semu_diffusion.assets import EMBEDDED
from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.ui.desk import METHODS, Desk, problem, text
from semu_diffusion.pipelines.ui.pictures import MAX_STRENGTH

__all__ = ["HEAD", "STYLE", "build", "theme"]

MOST_SEEDS = 16
ACCENT, BRIGHT = "#0b6285", "#6cc3e6"  # the report's, on light and on dark paper
HEAD = '<meta name="color-scheme" content="light dark">'
STYLE = Path(__file__).with_name("page.css")


def answered(function: Callable[..., str]) -> Callable[..., str]:
    """The function, with an InputError as a line on the page."""

    def call(*words: Any) -> str:
        try:
            return function(*words)
        except InputError as error:
            return problem(error)

    return call


def theme() -> Any:
    """The report's colours, of which every text can be read, and system fonts: nothing is fetched from anywhere."""
    from gradio.themes import Base, Font

    sans = [Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")]
    mono = [Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "monospace")]
    made = Base(primary_hue="cyan", neutral_hue="slate", font=sans, font_mono=mono)
    names = ("body_text_color_subdued", "link_text_color", "slider_color", "block_title_text_color")
    light, dark = ("#55606d", ACCENT, ACCENT, "#3b4550"), ("#a3b0bd", BRIGHT, BRIGHT, "#d3dae1")
    button = ("button_primary_background_fill", "checkbox_background_color_selected")
    return made.set(
        **dict(zip(names, light, strict=True)),
        **{f"{name}_dark": colour for name, colour in zip(names, dark, strict=True)},
        **{f"{name}{ending}": ACCENT for name in button for ending in ("", "_dark")},
        **{f"{button[0]}_hover{ending}": "#094e6a" for ending in ("", "_dark")},
        color_accent=ACCENT,
    )


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
            try:
                conditions, erasable = desk.studio.conditions(choice), desk.studio.erasable(choice)
            except InputError as error:
                raise gr.Error(text(error), print_exception=False) from error
            of_classes, fitting = choice.kind == "class", desk.fitting(choice)
            named = [(one or "no class", one) for one in conditions]
            return [
                gr.update(choices=named, value=conditions[0] if conditions and of_classes else None, visible=of_classes),
                gr.update(value=conditions[0] if conditions and not of_classes else "", visible=not of_classes),
                patches(gr, fitting, fitting[:1]),
                gr.update(value=desk.studio.sampling_steps(choice)),
                gr.update(value=desk.studio.guidance_scale(choice)),
                gr.update(choices=list(erasable), value=[], allow_custom_value=not of_classes),
                gr.update(value=choice.source == EMBEDDED),
            ]

        picked = [*(look[part] for part in ("class", "prompt", "patches", "steps", "guidance")), erase["what"], erase["judged"]]
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
    gr.on([draw.click, strength.change, prompt.submit], answered(drawn), asked, shown, trigger_mode="always_last")
    return {"class": classes, "prompt": prompt, "patches": chosen, "steps": steps, "guidance": guidance}


def _erase(gr: Any, desk: Desk, page: Any, model: Any, picked: Any) -> dict[str, Any]:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            what = gr.Dropdown([], multiselect=True, label="What to erase", elem_id="what")
            method = gr.Dropdown(list(METHODS), label="Method", elem_id="method")
            judged = gr.Checkbox(True, label="Let a judge look at the samples", elem_id="judged")
            with gr.Accordion("Settings", open=False):
                steps = gr.Number(0, label="Training steps (0: the method's)", precision=0, elem_id="training-steps")
                images = gr.Number(0, label="Images of each (0: 16 of a class, 6 of a prompt)", precision=0, elem_id="images")
                sampling = gr.Number(0, label="Steps of these images (0: the model's)", precision=0, elem_id="sampling-steps")
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

    def end() -> list[Any]:
        desk.stop()
        return look()

    def tick(name: str) -> list[Any]:
        """Also, at its end, the patches with the one that it left."""
        found = gr.update() if desk.running else patches(gr, desk.fitting(desk.shelf.model(name)))
        return [*look(), found]

    state = [panel, timer, start, stop]
    page.load(look, None, state, show_progress="hidden")  # also for who comes while it is at work
    asked = [model, what, method, judged, steps, images, sampling]
    start.click(begin, asked, [refused, *state], show_progress="hidden")
    stop.click(end, None, state, show_progress="hidden")
    timer.tick(tick, model, [*state, picked], show_progress="hidden")
    return {"what": what, "judged": judged}
