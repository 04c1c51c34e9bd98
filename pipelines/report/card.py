"""The model card beside a patch: what was erased, what was measured and what was not, how to load it, its limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semu_diffusion.eval.metrics.unlearning import answer_words
from semu_diffusion.models.hub import is_hub_id

__all__ = ["patch_card"]

SHARES = {
    "unlearning_accuracy": "unlearning accuracy (share in which the judge no longer sees it)",
    "forget_accuracy": "accuracy on what was erased",
    "paraphrase_forget_accuracy": "seen by other words or sentences than it was erased with",
    "retain_accuracy": "accuracy on kept classes",
    "in_domain_retain_accuracy": "right on others of its kind",
    "cross_domain_retain_accuracy": "right on the other kind",
    "unconditional_share": "its share when nothing is asked for",
    "revival": "brought back by one learned vector",
}
LIMITS = (
    "A patch is no guarantee: whoever has the base model can leave it off, what was erased can be learned again from images, "
    "and unlearning accuracy alone proves nothing. Read what was brought back, and what was not measured."
)


def patch_card(record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """README.md for a run folder, from the content of its run.json and metrics.json; every number is from there."""
    from huggingface_hub import ModelCardData

    config = record["config"]
    words = "concept" in config
    erased = ", ".join(config["concept"] if words else config["forget"])
    base = str(record["base_model"]["source"])
    hub = is_hub_id(base) and record["base_model"].get("revision") is not None  # or a local folder of one slash
    base = base if hub else Path(base).name  # a path tells of a machine, not of a model
    data = ModelCardData(
        library_name="diffusers",
        base_model=base if hub else None,
        tags=["concept-erasure", "machine-unlearning", "semu", *(["lora", "text-to-image"] if words else [])],
        pipeline_tag="text-to-image" if words else None,
    )
    lines = ["---", data.to_yaml(), "---", f"# Without: {erased}", ""]
    anchors = record.get("anchors") or {}
    answered = "; ".join(f"{name} is answered with {anchor or 'no prompt'!r}" for name, anchor in anchors.items())
    patch = metrics["patch"]
    lines += [
        f"An erasure patch for `{base}` made by semu-diffusion (SEMU, arXiv 2502.07587). {answered + '. ' if answered else ''}"
        f"{patch['trained_parameters']:,} numbers were trained, {100 * patch['fraction']:.3f} % of the model's, in "
        f"{patch['layers']} layers.",
        "",
        "## Load it",
        "",
        *(_loading_words(record["config"]["matricisation"] == "full") if words else _loading_classes()),
        "",
        "Its strength is the adapter's weight, or `patch.scale(s)`: 0 is the original, 1 as measured below.",
        "",
        "## Measured",
        "",
        "| | before | after |",
        "|---|---:|---:|",
    ]
    missing = []
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    for key, what in SHARES.items():
        if key not in after:
            continue
        if after[key] is None:
            missing.append(what)
            continue
        old = before.get(key)
        lines.append(f"| {what} | {'–' if old is None else f'{100 * old:.1f} %'} | {100 * after[key]:.1f} % |")
    side = metrics.get("side_effects") or {}
    if side.get("paired_mse") is not None:
        lines.append(f"| change of what was kept, same seeds (MSE in [-1, 1]) | 0 | {side['paired_mse']:.4f} |")
        lines.append(f"| the same (SSIM) | 1 | {side['paired_ssim']:.3f} |")
    else:
        missing.append("the change of what was kept")
    missing += _not_measured(metrics, words)
    lines.append("")
    for name, shares in (after.get("answers") or {}).items():
        lines += [f"Asked for {name} it now makes what the judge calls {answer_words(shares)}.", ""]
    lines += ["Protocol: " + _protocol(metrics["protocol"]), ""]
    lines += _more_measured(metrics)
    if missing:
        lines += ["Not measured: " + "; ".join(missing) + ".", ""]
    return "\n".join([*lines, "## Limits", "", LIMITS, ""])


def _more_measured(metrics: Mapping[str, Any]) -> list[str]:
    """CLIP scores, LPIPS and the LoRA's distance, where they were measured."""
    found = []
    clips = [(metrics.get(when) or {}).get("clip_score") for when in ("before", "after")]
    if all(clips):
        for kind in ("forget", "retain"):
            scores, scaled = ([clip[kind][scale] for clip in clips] for scale in ("score", "clipscore"))  # type: ignore[index]
            found.append(
                f"CLIP score of the {kind} prompts ({clips[0]['model']}): {scores[0]:.2f} to {scores[1]:.2f} "  # type: ignore[index]
                f"(CLIPScore {scaled[0]:.3f} to {scaled[1]:.3f})"
            )
    if (metrics.get("side_effects") or {}).get("paired_lpips") is not None:
        found.append(f"LPIPS of what was kept, same seeds: {metrics['side_effects']['paired_lpips']:.3f}")
    if metrics.get("lora"):
        found.append(
            f"the LoRA, loaded by diffusers, is {metrics['lora']['relative_difference']:.1e} from the patch (relative)"
        )
    return ["Also: " + "; ".join(found) + ".", ""] if found else []


def _loading_words(lora: bool) -> list[str]:
    own = '`ErasurePatch.load("patch.safetensors").apply(pipe.unet)`, and `remove` restores every byte.'
    if not lora:
        return [f"There is no LoRA of it (its convolutions are split by channel). With semu-diffusion: {own}"]
    return [
        "```python",
        'pipe.load_lora_weights("lora", weight_name="pytorch_lora_weights.safetensors", adapter_name="erased")',
        'pipe.set_adapters("erased", 1.0)',
        "```",
        "",
        f"In ComfyUI and A1111 load `lora/kohya_lora.safetensors` as a LoRA of weight 1. With semu-diffusion: {own}",
    ]


def _loading_classes() -> list[str]:
    return [
        "```python",
        "from semu_diffusion import ErasurePatch",
        "",
        'ErasurePatch.load("patch.safetensors").apply(pipe.unet)  # remove(pipe.unet) restores every byte',
        "```",
    ]


def _not_measured(metrics: Mapping[str, Any], words: bool) -> list[str]:
    after = metrics.get("after") or {}
    found = ["the quality of pictures (FID)"] if not (metrics.get("fid") or {}).get("retain_after") else []
    if words and not after.get("clip_score"):
        found.append("CLIP scores")
    if words and not metrics.get("lora"):
        found.append("whether the LoRA files equal the patch")
    return found


def _protocol(protocol: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in protocol.items() if isinstance(value, str | int | float) and value != ""}
    judges = protocol.get("classifiers") or ({"judge": protocol["classifier"]} if protocol.get("classifier") else {})
    named = [f"{kind} judged by {judge['name']}" for kind, judge in judges.items() if isinstance(judge, Mapping)]
    return "; ".join([*(f"{key.replace('_', ' ')} {value}" for key, value in plain.items()), *named]) + "."
