"""The model card of a training: what all cards say and what each training adds, put into the one template beside this file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Card", "Result", "judged_shares", "model_card"]

SETTINGS = ("batch_size", "lr", "final_lr", "warmup", "weight_decay", "clip", "ema", "seed")


@dataclass(frozen=True)
class Result:
    """A sentence of the model card with a number for each name, ``of`` what and in which ``unit``."""

    sentence: str
    of: str
    unit: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Card:
    """What a training adds to the facts that stand in every model card."""

    title: str
    about: str
    facts: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()


def model_card(recipe: Any, card: Card) -> str:
    """README.md of a recipe's model: data, time and settings as they are, and what its ``card`` says beside them."""
    from huggingface_hub import ModelCard, ModelCardData

    settings = {**{name: getattr(recipe.config, name) for name in SETTINGS}, **card.settings}
    if recipe.config.max_minutes:
        settings["schedule_over"] = f"{recipe.config.max_minutes:g} minutes"
    template = str(Path(__file__).with_name("card.md"))
    tags = ModelCardData(library_name=recipe.library_name, pipeline_tag=recipe.pipeline_tag)
    return f"{ModelCard.from_template(tags, template, card=card, recipe=recipe, settings=json.dumps(settings))}\n"


def judged_shares(
    source: str,
    names: Sequence[str],
    count: int,
    device: torch.device,
    sample: Callable[[list[int]], torch.Tensor],
) -> tuple[float, dict[str, float], str]:
    """(share of samples that a judge calls what they are samples of, that share for each name, the judge's own name).

    ``sample`` makes images (N, C, H, W) in [0, 1] or uint8 of N indices into ``names``; it is asked for ``count`` of each,
    without those names that the judge does not know.
    """
    import torch

    from semu_diffusion.eval.judges.judge import load_judge

    judge = load_judge(source, names, device)
    known = [index for index, name in enumerate(names) if name not in judge.unjudged]
    images = sample([index for index in known for _ in range(count)])
    right = (judge.predict(images).view(-1, count) == torch.tensor(known)[:, None]).float()
    shares = zip(known, right.mean(1).tolist(), strict=True)
    return round(float(right.mean()), 4), {names[index]: round(share, 4) for index, share in shares}, judge.name
