"""The short table that a command ends with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from semu_diffusion.eval.results import Evaluation, LoraCheck
from semu_diffusion.pipelines.report.words import shares_of, shares_words

__all__ = ["table"]

Row = tuple[str, str, str]


def table(evaluation: Evaluation, anchors: Mapping[str, str], folder: Path, edit: str = "patch") -> str:
    """Every number that was measured, before and after, what replaces what was erased, the cost, where to look.

    ``edit`` is what people call what was scored: a patch of ours, or a LoRA or model of others.
    """
    rows = [*_judged(evaluation), *_clip(evaluation), *_changes(evaluation), *_distances(evaluation)]
    width = max(len(row[0]) for row in rows)
    lines = [f"{words:<{width}}  {old:>8}  {new}".rstrip() for words, old, new in rows]
    lines += [
        f"asked for {name}, the judge now sees: {shares_words(shares)}" for name, shares in evaluation.after.judged_as.items()
    ]
    lines += ["", *_said(evaluation, anchors, folder, edit), f"{folder}/  (look at {folder / 'before_after.png'})"]
    return "\n".join(lines)


def _judged(evaluation: Evaluation) -> Iterator[Row]:
    named, found = ", ".join(evaluation.erased), []
    for share in shares_of(evaluation):
        old, new = share.of(evaluation.before), share.said(evaluation)
        if new:
            before = "–" if old is None else f"{100 * old:.1f} %"
            found.append((share.words.format(erased=named), before, new))
    yield (
        ("judged", "before", "after (95 % interval)")
        if found
        else ("not judged (--classifier names a judge)", "before", "after")
    )
    yield from found


def _clip(evaluation: Evaluation) -> Iterator[Row]:
    before, after = evaluation.before.clip_score or {}, evaluation.after.clip_score or {}
    for group in [group for group in before if group in after]:
        words = f"{group} conditions [{before[group].model}]"
        yield f"CLIP score, {words}", f"{before[group].score:.3f}", f"{after[group].score:.3f}"
        yield f"CLIPScore, {words}", f"{before[group].clipscore:.3f}", f"{after[group].clipscore:.3f}"


def _changes(evaluation: Evaluation) -> Iterator[Row]:
    """Paired metrics of the samples from the same seeds; what was erased shall change, the rest shall not."""
    groups = {
        f"change of {', '.join(evaluation.erased)}": evaluation.forget_effect,
        "change of what is kept": evaluation.side_effects,
        "change of what is kept, by other words": evaluation.held_out_effect,
        "change without a condition": evaluation.unprompted_effect,
    }
    for words, effect in groups.items():
        if effect is not None:
            numbers = {"SSIM": effect.paired_ssim, "LPIPS": effect.paired_lpips, "DINOv2 drift": effect.paired.get("dino")}
            known = {name: number for name, number in numbers.items() if number is not None}
            texts = [_number(effect.paired_mse, ".4f"), *(f"{number:.3f}" for number in known.values())]
            yield f"{words} ({'; '.join(('MSE', *known))})", "0", "; ".join(texts)
    side = evaluation.side_effects
    if side is not None and len(side.per_condition) > 1 and evaluation.kind == "class":
        most = max(side.per_condition, key=lambda name: side.per_condition[name].get("mse", 0))
        mse, ssim = (side.per_condition[most].get(name) for name in ("mse", "ssim"))
        yield f"what changes most: {most}", "0", f"{_number(mse, '.4f')}; {_number(ssim, '.3f')}"


def _distances(evaluation: Evaluation) -> Iterator[Row]:
    for name, found in evaluation.distances.items():
        to = "" if found.paired else f" to {found.reference}"
        how = [*(["drift, same seeds"] if found.paired else []), f"{found.images} samples"]
        if name == "fid" and found.images < 10_000:
            how.append("biased upward")
        words = f"{name.upper()} of what is kept{to} [{found.extractor.name}]"
        yield words, f"{found.before:.4g}", f"{found.after:.4g}  ({'; '.join(how)})"


def _said(evaluation: Evaluation, anchors: Mapping[str, str], folder: Path, edit: str) -> Iterator[str]:
    patch, cost, protection = evaluation.patch, evaluation.cost, evaluation.protection
    if anchors:
        yield "; ".join(f"{name} replaced by {anchor or 'no prompt'!r}" for name, anchor in anchors.items())
    if protection is not None and protection.response_on_kept is not None:
        yield (
            f"protected: {_number(protection.energy_covered, '.1%')} or more of what kept inputs send into a layer; "
            f"{_number(protection.gradient_energy_kept, '.1%')} of the forget gradient left; kept inputs feel "
            f"{protection.response_on_kept:.2%} (rms; by layer in run.json)"
        )
    if patch is not None:
        passes = f" ({sum(cost.passes.values()):,} image passes)" if cost.passes else ""
        erased = "" if cost.erasure is None else f"erased in {cost.erasure:.0f} s{passes}, "
        yield (
            f"{edit}: {patch.trained_parameters:,} parameters{' trained' if edit == 'patch' else ''} "
            f"({100 * patch.fraction:.3f} % of the model) in "
            f"{patch.layers} layers, {patch.bytes / 1000:.0f} kB; "
            f"{erased}evaluated in {cost.seconds.get('evaluate') or 0:.0f} s"
        )
    if any((folder / name).is_dir() for name in ("lora", "lora.collapsed")):
        yield _lora(evaluation.lora)
    elif cost.erasure is not None:
        yield "no lora/: no LoRA makes this update (run.json says why)"


def _lora(lora: LoraCheck | None) -> str:
    if lora is None:
        return "lora/ was not checked: that needs PEFT (pip install 'semu-diffusion[lora]')"
    unloaded = "restores every weight" if lora.unloaded_equal else "DOES NOT RESTORE the weights"
    beyond = "" if lora.same else ", MORE THAN ROUNDING: the LoRA is not the patch"
    return f"lora/, loaded as users do: {lora.relative_difference:.1e} from the patch{beyond}; unloading {unloaded}"


def _number(value: float | None, form: str) -> str:
    """A dash for what a metrics.json of others does not say."""
    return "–" if value is None else format(value, form)
