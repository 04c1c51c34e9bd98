"""The page of one run: what its templates are given, and the file they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semu_diffusion.eval.pictures import ATTEMPTS, UNPROMPTED, Picture
from semu_diffusion.files import write_text
from semu_diffusion.pipelines.report.mark import MARK
from semu_diffusion.pipelines.report.page import protocol
from semu_diffusion.pipelines.report.page.numbers import (
    about_erased,
    conditions_table,
    measures,
    probes_by_strength,
    shares,
    title_of,
)
from semu_diffusion.pipelines.report.page.plots import curves, flow, layer_bars
from semu_diffusion.pipelines.report.page.run import Run
from semu_diffusion.pipelines.report.page.usage import LIMITS, usages
from semu_diffusion.pipelines.report.page.verdicts import verdicts
from semu_diffusion.pipelines.report.words import percent

__all__ = ["render", "write_run_page"]

FILTERS = {"still_seen": "still seen", "lost": "no longer recognised", "changed_most": "changed most", "unsure": "judge unsure"}
FILES = ("run.json", "metrics.json", "metrics.jsonl", "pictures.json", "README.md", "before_after.png")


def write_run_page(run: Run, path: Path) -> None:
    """Write the page of a run; it links to the run's files where it lies beside them."""
    files = [name for name in FILES if (run.folder / name).is_file() or name == "run.json"]
    beside = path.resolve().parent == run.folder.resolve()
    write_text(path, render("run.html", {**_context(run), "files": files, "beside": beside}))


def render(template: str, context: dict[str, Any]) -> str:
    """A template of this folder with what it is given; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the judge's greatest share comes first
    environment.filters |= {"percent": percent, "title_of": title_of, "origin_of": origin_of}
    return environment.get_template(template).render(context, generator=MARK, filters=FILTERS)


def _context(run: Run) -> dict[str, Any]:
    evaluation = run.evaluation
    rows = () if run.pictures is None else run.pictures.rows
    galleries: dict[str, dict[str, list[tuple[int, Picture]]]] = {"erased": {}, "kept": {}, "depth": {}}
    for place, row in enumerate(rows):
        deep = row.group == UNPROMPTED or row.group.startswith(ATTEMPTS)
        tab = "depth" if deep else "erased" if row.erased else "kept"
        galleries[tab].setdefault(row.group, []).append((place, row))
    found = shares(evaluation)
    became = {} if run.pictures is None else run.pictures.became
    probes = probes_by_strength(evaluation)
    return {
        "run": run,
        "evaluation": evaluation,
        "title": f"{run.title} erased from {run.base}",
        "headline": protocol.headline(run),
        "verdicts": verdicts(evaluation, run.pictures),
        "galleries": galleries,
        "details": [_detail(row, run.anchors) for row in rows],
        "shares": {
            "erased": [one for name, one in found.items() if about_erased(name, run.pictures) and name != "unconditional"],
            "kept": [one for name, one in found.items() if not about_erased(name, run.pictures)],
            "depth": [*(probe.share for probe in probes), *(one for name, one in found.items() if name == "unconditional")],
        },
        "measures": list(measures(evaluation)),
        "conditions": {tab: conditions_table(evaluation, run.pictures, tab == "erased") for tab in ("erased", "kept")},
        "flows": {answer: flow(rows, answer) for answer, rows in became.get("forget", {}).items()},
        "mistaken": _mistaken(run),
        "probes": probes,
        "curves": _curves(run),
        "layers": run.layers,
        "layer_bars": layer_bars(run.layers) if run.layers else "",
        "usages": usages(run),
        "limits": LIMITS,
        "costs": protocol.costs(evaluation),
        "paragraphs": list(protocol.paragraphs(evaluation)),
        "replay": protocol.replay(run),
        "settings": protocol.settings(run),
        "environment": protocol.environment(run),
    }


def _detail(row: Picture, anchors: dict[str, str]) -> dict[str, Any]:
    """What the page shows of a picture that was clicked; the two images it takes from where they are shown."""
    return {
        "group": title_of(row.group),
        "prompt": row.condition or "no prompt",
        "from": origin_of(row),
        "answer": row.answer,
        "erased": row.erased,
        "anchor": row.images.get("anchor"),
        "anchorName": anchors.get(str(row.answer), ""),
        "before": None if row.before is None else row.before.shares,
        "after": None if row.after is None else row.after.shares,
        "change": row.change,
    }


def origin_of(row: Picture) -> str:
    """What both pictures of a pair started from."""
    return f"picture {row.index + 1}" if row.seed is None else f"seed {row.seed}"


def _mistaken(run: Run) -> list[tuple[str, str, int, str]]:
    """(right answer, called so now, how many, group) of kept samples that were recognised before and are not now."""
    found = [
        (answer, label, count, title_of(group))
        for group, by_answer in ({} if run.pictures is None else run.pictures.became).items()
        if not about_erased(group, run.pictures) and group != UNPROMPTED
        for answer, rows in by_answer.items()
        for label, count in rows.get(answer, {}).items()
        if label != answer
    ]
    return sorted(found, key=lambda one: -one[2])


def _curves(run: Run) -> dict[str, Any]:
    if len(run.steps) < 2:
        return {}
    parts = dict.fromkeys(name for step in run.steps for name in step["parts"])
    loss = {name: [step["parts"].get(name, 0.0) for step in run.steps] for name in parts}
    loss = {"loss": [step["loss"] for step in run.steps], **(loss if len(loss) > 1 else {})}
    last = run.steps[-1]["loss"]
    return {
        "Loss and its parts": curves(loss, f"The loss over {len(run.steps)} steps, at the end {last:.2e}."),
        "Gradient norm": curves({"norm": [step["gradient_norm"] for step in run.steps]}, "The gradient's norm over the steps."),
    }
