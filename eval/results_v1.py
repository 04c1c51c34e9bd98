"""The metrics.json of schema version 1, which `erase-class` and `erase-concept` wrote each in its own way, as version 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["upgraded"]

RENAMED = {
    "paraphrase_forget_accuracy": "paraphrase_accuracy",
    "in_domain_retain_accuracy": "in_domain_accuracy",
    "cross_domain_retain_accuracy": "cross_domain_accuracy",
    "per_class": "per_condition",
    "per_prompt": "per_condition",
    "answers": "judged_as",
}
PROTECTION = {
    "gradient_left": "gradient_energy_kept",
    "felt_by_kept_inputs": "response_on_kept",
    "least_energy_held": "energy_covered",
}
ACCURACIES = ("in_domain_accuracy", "cross_domain_accuracy")
PAIRED = ("mse", "ssim", "lpips")


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers under the names of version 2; what that version does not know is left out."""
    kind = "concept" if "forget_effect" in content else "class"
    before, after = (_scores(content[when], kind) for when in ("before", "after"))
    found = {
        "kind": kind,
        "erased": list(after.get("judged_as") or ()),
        "protocol": _protocol(content["protocol"], kind),
        "before": before,
        "after": after,
        "distances": _distances(content),
        **{name: content.get(name) for name in ("patch", "lora")},
        "protection": {new: content["protection"].get(old) for old, new in PROTECTION.items()}
        if "protection" in content
        else None,
        "cost": content.get("cost") or {},
    }
    for name in ("side_effects", "forget_effect", "unprompted_effect"):
        found[name] = _pairs(content.get(name))
    return found


def _protocol(old: Mapping[str, Any], kind: str) -> dict[str, Any]:
    judges = old.get("classifiers") if kind == "concept" else {"object": old["classifier"]} if old.get("classifier") else None
    each = old.get("images_per_prompt", old.get("images_per_class"))
    groups = ("forget", "paraphrase", "in_domain", "cross_domain")
    return {
        **{name: old[name] for name in ("seed", "sampler", "steps", "guidance_scale")},
        "images_per_condition": each,
        "unconditional_samples": old.get("unconditional_samples", each),
        "conditions": {group: old[f"{group}_prompts"] for group in groups if f"{group}_prompts" in old},
        "judges": judges or {},
    }


def _scores(old: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found = {RENAMED.get(name, name): value for name, value in old.items() if value is not None}
    if kind == "class" and "retain_accuracy" in found:
        found["in_domain_accuracy"] = found["retain_accuracy"]
    if kind == "concept":
        kept = [found[name] for name in ACCURACIES if name in found]
        found["retain_accuracy"] = sum(kept) / len(kept) if kept else None
    clip = found.pop("clip_score", None)
    if clip:
        rest = {"model": clip["model"], "cosine": None, "pairs": None}
        found["clip_score"] = {group: {**clip[group], **rest} for group in ("forget", "retain")}
    return found


def _pairs(old: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if old is None or old.get("paired_mse") is None:
        return None
    paired = {name: old[f"paired_{name}"] for name in PAIRED if old.get(f"paired_{name}") is not None}
    return {"paired": paired, "per_condition": old.get("per_class") or {}}


def _distances(content: Mapping[str, Any]) -> dict[str, Any]:
    fid, protocol = content.get("fid") or {}, content["protocol"]
    if fid.get("retain_after") is None:
        return {}
    own = str(protocol["fid_reference"]).startswith("the original")
    return {
        "fid": {
            "before": fid["retain_before"], "after": fid["retain_after"], "images": 0, "reference_images": 0,
            "reference": protocol["fid_reference"], "paired": own, "extractor": protocol["fid_extractor"],
        }
    }  # fmt: skip
