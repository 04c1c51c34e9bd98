"""The benchmark's rows as one Markdown page: the protocol in words, the means by method, every row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semu_diffusion.files import write_text
from semu_diffusion.pipelines.benchmark.methods import METHODS
from semu_diffusion.pipelines.benchmark.rows import (
    COST,
    SIDE_EFFECTS,
    Column,
    before_and_after,
    read_rows,
    table_head,
    table_line,
)
from semu_diffusion.pipelines.report.concept_results import concept_section

__all__ = ["CLASSES", "CONCEPTS", "page", "write"]

CLASSES, CONCEPTS = "rows.jsonl", "concepts.jsonl"  # in the folder of the measured rows

COLUMNS = (
    Column("UA", ".3f", ("after", "unlearning_accuracy")),
    *before_and_after("kept", "retain_accuracy"),
    *SIDE_EFFECTS,
    *before_and_after("unlabelled", "unconditional_share"),
    Column("FID kept", ".2f", ("fid", "retain_after")),
    *COST,
)


def write(path: Path, work: Path) -> None:
    """Write `page` of the rows in ``work``, beside and renamed."""
    found = [read_rows(work / name) if (work / name).is_file() else [] for name in (CLASSES, CONCEPTS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(*found))


def page(classes: Sequence[dict[str, Any]], concepts: Sequence[dict[str, Any]] = ()) -> str:
    """Markdown of the rows of both benchmarks, each with the protocol record first; a benchmark without rows is left out."""
    text = [
        "# Results",
        "",
        "Written by `semu benchmark` and `semu benchmark-concepts`: all rows of a table share protocol, seeds and judge.",
    ]
    if len(classes) > 1:
        text += ["", "# Classes (`erase-class`)", "", *_class_section(classes)]
    if len(concepts) > 1:
        text += ["", "# Concepts (`erase-concept`)", "", *concept_section(concepts)]
    return "\n".join(text) + "\n"


def _class_section(found: Sequence[dict[str, Any]]) -> list[str]:
    protocol, rows = found[0]["protocol"], found[1:]
    judge, extractor = protocol["classifier"], protocol["fid_extractor"]
    text = []
    text.append(
        f"Protocol: {protocol['images_per_class']} images of every class, before and after, {protocol['sampler']} "
        f"{protocol['steps']} steps, w = {protocol['guidance_scale']:g}, seed {protocol['seed']}. Judge: {judge['name']} "
        f"(weights {judge['sha256'][:12]}). FID of the kept classes by {extractor['name']}, "
        f"against {protocol['fid_reference']}. " + (_revival(protocol["revival"]) if "revival" in protocol else "").rstrip()
    )
    if any(row["method"] == "official" for row in rows):
        text[0] += f" `official` was trained for {found[0]['official_steps']} steps (the reference code: 1,000)."
    text += ["", WORDS, "", "## By method (in brackets: how many classes the means are over)", ""]
    text.append(table_head("method (classes)", COLUMNS))
    for method, (words, _) in METHODS.items():
        group = [row for row in rows if row["method"] == method]
        if group:
            text.append(table_line(f"{words} ({len(group)})", group, COLUMNS))
    for method, (words, _) in METHODS.items():
        group = [row for row in rows if row["method"] == method]
        if group:
            text += ["", f"## {words}", "", table_head("erased", COLUMNS)]
            text += [table_line(_erased(row), [row], COLUMNS) for row in group]
    return text


def _erased(row: dict[str, Any]) -> str:
    """The erased class, and what the judge calls most of its samples now."""
    shares = (row["after"].get("answers") or {}).get(row["class"]) or {}
    if not shares:
        return str(row["class"])
    most = max(shares, key=lambda name: shares[name])
    return f"{row['class']} ({most} {shares[most]:.0%})"


WORDS = (
    "UA: share of the erased class's samples that the judge no longer calls so. kept: share of the kept classes' samples "
    "that it calls right. drift: mean squared difference of the kept classes' images (in [-1, 1]) to the original's, same "
    "seeds. revival: share that one learned class vector brings back. unlabelled: share of the erased class among samples "
    "without a label (w = 1). trained: numbers trained, as a share of the UNet's. erase s: collect + subspace + train, "
    "wall clock. A dash is what was not measured. In brackets after an erased class: what the judge calls most of its samples "
    "now."
)


def _revival(found: dict[str, Any]) -> str:
    return (
        f"Revival: one class vector learned from the null class's on images that the original made of the class, Adam "
        f"{found['lr']:g}, {found['steps']} steps of {found['batch_size']}, the erased model frozen. "
    )
