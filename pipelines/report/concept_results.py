"""The rows of the benchmark of concepts as a section of the results page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semu_diffusion.pipelines.benchmark.concept_methods import METHODS
from semu_diffusion.pipelines.benchmark.rows import COST, SIDE_EFFECTS, Column, before_and_after, table_head, table_line

__all__ = ["concept_section"]

COLUMNS = (
    Column("UA", ".3f", ("after", "unlearning_accuracy")),
    Column("sees before", ".3f", ("before", "forget_accuracy")),
    *before_and_after("paraphrase", "paraphrase_forget_accuracy"),
    *before_and_after("in-domain", "in_domain_retain_accuracy"),
    *before_and_after("cross", "cross_domain_retain_accuracy"),
    *SIDE_EFFECTS,
    *before_and_after("unprompted", "unconditional_share"),
    *COST,
)
WORDS = (
    "UA: share of the erased concept's samples in which the judge no longer sees it; sees before: share in which it did. "
    "paraphrase: share seen by held-out words and sentences. in-domain: judged right on the other objects "
    "(or, for a style, the other styles); cross: on the styles (or, for a style, the objects of photos). drift and SSIM: "
    "paired with the original's images of both domains, same seeds. revival: share that one learned pseudo-word brings back "
    "(the remap leaves the network as it was: there it is the original's). "
    "unprompted: share of the concept among samples without a prompt (w = 1). A dash is what was not measured."
)


def concept_section(found: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines of ``found``: the protocol record, then one record a row."""
    protocol, rows = found[0]["protocol"], found[1:]
    named = rows[0]["judges"].items()
    judges = "; ".join(f"{kind}s by {judge['name']} (weights {judge['sha256'][:12]})" for kind, judge in named)
    revived = protocol["revived"]
    how = (
        f" Revival: one pseudo-word learned on {revived['images']} images that the original made of the concept, the erased "
        f"model frozen, Adam, {revived['steps']} steps of {revived['batch']}, then {revived['samples']} samples."
    )
    text = [
        f"Protocol: {protocol['images_per_prompt']} images of every prompt, before and after, {protocol['sampler']} "
        f"{protocol['sampling_steps']} steps, w = {protocol['guidance_scale']:g}, seed {protocol['seed']}. Judges: {judges}."
        + (how if protocol["revival"] else ""),
        "",
        WORDS,
        "",
        "## By method (in brackets: how many concepts the means are over)",
        "",
        table_head("method", COLUMNS),
    ]
    for method, (words, _) in METHODS.items():
        for kind in sorted({row["kind"] for row in rows}):
            group = [row for row in rows if row["method"] == method and row["kind"] == kind and "+" not in row["class"]]
            if group:
                text.append(table_line(f"{words}, {kind}s ({len(group)})", group, COLUMNS))
    for method, (words, _) in METHODS.items():
        group = [row for row in rows if row["method"] == method]
        if group:
            text += ["", f"## {words}: every concept", "", table_head("erased (answered with)", COLUMNS)]
            for row in group:
                anchors = ", ".join(anchor or "no prompt" for anchor in row["anchors"].values())
                text.append(table_line(f"{row['class']} ({anchors})", [row], COLUMNS))
    return text
