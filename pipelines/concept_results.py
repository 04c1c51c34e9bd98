"""The rows of the benchmark of concepts as a section of the results page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semu_diffusion.pipelines.benchmark_rows import cell
from semu_diffusion.pipelines.concept_methods import METHODS

__all__ = ["concept_section"]

COLUMNS = (
    "UA", "sees before", "paraphrase before", "paraphrase", "in-domain before", "in-domain", "cross before", "cross", "drift",
    "SSIM", "revival before", "revival", "unprompted before", "unprompted", "trained", "patch kB", "erase s",
)  # fmt: skip
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
        f"Protocol: {protocol['images_per_prompt']} images of every prompt, before and after, DDIM "
        f"{protocol['sampling_steps']} steps, w = {protocol['guidance_scale']:g}, seed {protocol['seed']}. Judges: {judges}."
        + (how if protocol["revival"] else ""),
        "",
        WORDS,
        "",
        "## By method (in brackets: how many concepts the means are over)",
        "",
        _header("method"),
    ]
    for method, (words, _) in METHODS.items():
        for kind in sorted({row["kind"] for row in rows}):
            group = [row for row in rows if row["method"] == method and row["kind"] == kind and "+" not in row["class"]]
            if group:
                text.append(_line(f"{words}, {kind}s ({len(group)})", group))
    for method, (words, _) in METHODS.items():
        group = [row for row in rows if row["method"] == method]
        if group:
            text += ["", f"## {words}: every concept", "", _header("erased (answered with)")]
            for row in group:
                anchors = ", ".join(anchor or "no prompt" for anchor in row["anchors"].values())
                text.append(_line(f"{row['class']} ({anchors})", [row]))
    return text


def _header(first: str) -> str:
    return f"| {first} | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS)


def _line(first: str, rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        cell(rows, ".3f", "after", "unlearning_accuracy"),
        cell(rows, ".3f", "before", "forget_accuracy"),
        cell(rows, ".3f", "before", "paraphrase_forget_accuracy"),
        cell(rows, ".3f", "after", "paraphrase_forget_accuracy"),
        cell(rows, ".3f", "before", "in_domain_retain_accuracy"),
        cell(rows, ".3f", "after", "in_domain_retain_accuracy"),
        cell(rows, ".3f", "before", "cross_domain_retain_accuracy"),
        cell(rows, ".3f", "after", "cross_domain_retain_accuracy"),
        cell(rows, ".4f", "side_effects", "paired_mse"),
        cell(rows, ".3f", "side_effects", "paired_ssim"),
        cell(rows, ".2f", "before", "revival"),
        cell(rows, ".2f", "after", "revival"),
        cell(rows, ".3f", "before", "unconditional_share"),
        cell(rows, ".3f", "after", "unconditional_share"),
        cell(rows, ".2%", "trained_fraction"),
        cell(rows, ".0f", "bytes", scale=1e-3),
        cell(rows, ".0f", "erase_seconds"),
    ]
    return f"| {first} | " + " | ".join(cells) + " |"
