"""The model card beside a patch: what was erased, what was measured and what was not, how to load it, its limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from semu_diffusion import assets
from semu_diffusion.eval.results import Evaluation, Scores
from semu_diffusion.files import public_name
from semu_diffusion.models.hub import is_hub_id
from semu_diffusion.pipelines.report.words import base_name, never_made, shares_of, shares_words

__all__ = ["for_repository", "patch_card"]

TEMPLATE = Path(__file__).with_name("patch_card.md")
LOADING = Path(__file__).with_name("patch_loading.md")
LOADERS = tuple(product(("kohya", "comfyui", "diffusers", "peft", "none"), ("unet", "transformer")))


def patch_card(record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """README.md for a run folder, from the content of its run.json and metrics.json; every number is from there."""
    from huggingface_hub import ModelCard, ModelCardData

    evaluation = Evaluation.from_json(metrics)
    words = evaluation.kind == "concept"
    erased = ", ".join(evaluation.erased)
    base = base_name(record["base_model"], evaluation.kind)
    hub = is_hub_id(base) and base == record["base_model"]["source"]
    anchors = record.get("anchors") or {}
    rows, missing = _rows(evaluation)
    network = str(record["base_model"].get("network", "unet"))
    lora = str(record["base_model"].get("lora", "kohya" if words else "peft"))
    data = ModelCardData(
        library_name="diffusers",
        base_model=base if hub else None,
        base_model_relation="adapter" if hub else None,
        **_license(str(record["base_model"]["source"]), evaluation.kind, hub),
        tags=["concept-erasure", "machine-unlearning", "semu", *(["lora", "text-to-image"] if words else [])],
        pipeline_tag="text-to-image" if words else None,
    )
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        erased=_inline(erased),
        collapsed=_inline(evaluation.collapsed or ""),
        base=base,
        anchors=_inline("; ".join(f"{name} is replaced by {anchor or 'no prompt'!r}" for name, anchor in anchors.items())),
        patch=evaluation.patch,
        loading=_loading("none" if record.get("no_lora") else lora, network),
        rows=[tuple(map(_inline, row)) for row in rows],
        said=[_inline(line) for line in _said(evaluation)],
        protocol=_protocol(evaluation),
        missing=_inline("; ".join(missing)),
    )
    return f"{card}".rstrip() + "\n"


def _inline(text: str) -> str:
    """The text in one line of Markdown: a name may hold what ends a line, a cell of a table or begins HTML."""
    shown = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", " ", text)
    return " ".join(shown.split()).replace("|", "\\|").replace("<", "&lt;")


def for_repository(card: str, repository: str) -> str:
    """The card with the lines by which the patch is loaded from its repository on the Hub."""
    for loader, network in LOADERS:
        card = card.replace(_loading(loader, network), _loading(loader, network, repository))
    return card


def _loading(loader: str, network: str, repository: str | None = None) -> str:
    from jinja2 import Template

    return Template(LOADING.read_text(encoding="utf-8")).render(loads=loader, network=network, repository=repository)


def _license(source: str, kind: assets.Kind, hub: bool) -> dict[str, Any]:
    """The base model's license, which a patch of it shares, as the model's own card says it if that is at hand."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    folder = Path(assets.placed(source, kind))
    card = try_to_load_from_cache(source, "README.md") if hub else folder.expanduser() / "README.md"
    with suppress(Exception):  # a foreign file: whatever is wrong with it, it tells no license
        told = metadata_load(str(card)) or {}
        found = {key: str(told[key]) for key in ("license", "license_name", "license_link") if told.get(key)}
        if "license" in found:
            return found
    link = {"license_link": f"https://huggingface.co/{source}"} if hub else {}
    return {"license": "other", "license_name": "that-of-the-base-model", **link}


def _rows(evaluation: Evaluation) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(words, before, after) of what was measured, and the words of what was not."""
    rows, missing = [], []
    for share in shares_of(evaluation):
        words = share.words.format(erased=", ".join(evaluation.erased) or "it")
        old, new = share.of(evaluation.before), share.of(evaluation.after)
        if new is not None:
            rows.append((words, "–" if old is None else f"{100 * old:.1f} %", f"{100 * new:.1f} %"))
        elif evaluation.kind in share.kinds:
            missing.append(words)
    side = evaluation.side_effects
    if side is None:
        missing.append("the change of what was kept")
    else:
        rows.append(("change of what was kept, same seeds (MSE in [-1, 1])", "0", f"{side.paired_mse:.4f}"))
        if side.paired_ssim is not None:
            rows.append(("the same (SSIM)", "1", f"{side.paired_ssim:.3f}"))
        for words, change in (("LPIPS", side.paired_lpips), ("DINOv2 drift, 1 - cosine", side.paired.get("dino"))):
            if change is not None:
                rows.append((f"the same ({words})", "0", f"{change:.3f}"))
    for name, found in evaluation.distances.items():
        to = "the original's own samples of the same seeds" if found.paired else found.reference
        few = f" from {found.images:,} samples" if found.images else ""
        by = public_name(found.extractor.name)
        rows.append((f"{name.upper()} to {to}{few} ({by})", f"{found.before:.4g}", f"{found.after:.4g}"))
    if not evaluation.distances:
        missing.append("the quality of pictures (FID, KID)")
    if not evaluation.after.clip_score:
        missing.append("CLIP scores")
    if evaluation.lora is None:
        missing.append("whether the LoRA equals the patch")
    return rows, missing


def _said(evaluation: Evaluation) -> list[str]:
    found = [
        f"Asked for {name} it now makes what the judge calls {shares_words(shares)}."
        for name, shares in evaluation.after.judged_as.items()
    ]
    unproven = never_made(evaluation)
    found += [] if unproven is None else [f"{unproven[0].upper()}{unproven[1:]}."]
    found += list(_clip_words(evaluation.before, evaluation.after))
    if evaluation.lora is not None:
        found.append(f"The LoRA, loaded as users do, is {evaluation.lora.relative_difference:.1e} from the patch (relative).")
    return found


def _clip_words(before: Scores, after: Scores) -> list[str]:
    old, new = before.clip_score or {}, after.clip_score or {}
    return [
        f"CLIP score of the {group} conditions ({old[group].model}): {old[group].score:.2f} to {new[group].score:.2f} "
        f"(CLIPScore {old[group].clipscore:.3f} to {new[group].clipscore:.3f})."
        for group in old
    ]


def _protocol(evaluation: Evaluation) -> str:
    protocol = evaluation.protocol
    judges = [f"{kind} judged by {public_name(judge.name)}" for kind, judge in protocol.judges.items()]
    return "; ".join([
        f"{protocol.images_per_condition} images of every condition, {protocol.unconditional_samples} without one",
        f"{protocol.sampler} {protocol.steps} steps, guidance scale {protocol.guidance_scale:g}, seed {protocol.seed}",
        *judges,
    ])  # fmt: skip
