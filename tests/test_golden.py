"""The maths of an erasure is what it was: the updates of two tiny runs, against those kept in golden.safetensors.

Every setting is given here, so that new defaults change nothing. The bytes of a patch differ between processors and
numbers of threads, so the updates are compared as matrices. Measured: other instructions (AVX2, AVX-512) move those
of the class by at most 5e-4 of their norm, those of the concept by 2e-3 (layers with two nearly tied directions by
0.3: they are not compared); a learning rate of 1 % more moves them by 8e-3 to 17e-3.
A change that is meant: ``python tests/test_golden.py`` writes the file again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_models import tiny_pipeline
from tiny_models import tiny_model

from semu_diffusion.domains.config import ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.erase.face import erase_class, erase_concept

GOLDEN = Path(__file__).with_name("golden.safetensors")
TOLERANCE = 3e-3  # of the norm
SETTINGS: dict[str, Any] = {
    "preset": "default",
    "guidance_scale": 3.0,
    "seed": 0,
    "forget_samples": 6,
    "anchor_samples": 3,
    "kept_samples": 12,
    "precision": "fp32",
    "protect": "null-space",
    "layers": ("attention", "conv"),
    "gradient": "objective",
    "explained_variance": 1.0,
    "rank_rule": "at_least",
    "min_rank": 3,
    "max_rank": 3,  # of a threshold a last bit could decide
    "matricisation": "full",
    "projection": "exact",
    "protected_energy": 0.9,
    "memory": None,
    "gradient_clip": None,
    "method": "semu",
    "target": "fixed",
    "overshoot": 1.0,
    "weighting": "image",
    "moving_target": False,
    "label_drop": 0.0,
    "unlabelled": 0.25,
    "unlabelled_shift": 1.5,
    "adversarial": 0.25,
    "retain": "self",
    "retain_weight": 8.0,
    "steps": 8,
    "batch_size": 4,
    "lr": 0.03,
    "lr_decay": True,
    "warmup": 0.15,
    "adam_beta2": 0.99,
}
CLASS = {**SETTINGS, "forget": ("red",), "anchor": "green"}
CONCEPT = {
    **SETTINGS,
    "concept": ("cat",),
    "synonyms": ("kitten",),
    "anchor": "dog",
    "forget_prompts": ("a photo of a cat", "a kitten"),
    "retain_prompts": ("a photo of a bird", "a tree"),
    "guidance_scale": 5.0,
}
KEPT = {
    "class": ("conv_in", "mid_block.attentions.0.to_q"),
    "concept": ("down_blocks.1.resnets.0.conv_shortcut", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
}


def updates(kind: str, **changes: Any) -> dict[str, torch.Tensor]:
    """The updates of two layers, and the norms of all."""
    if kind == "class":
        settings = {**CLASS, **changes}
        patch = erase_class(tiny_model().pipeline, *settings.pop("forget"), **settings)
    else:
        settings = {**CONCEPT, **changes}
        patch = erase_concept(tiny_pipeline(), *settings.pop("concept"), **settings)
    found = {f"{kind}.{name}": patch.delta(name).contiguous() for name in KEPT[kind]}
    return {**found, f"{kind}.norms": torch.stack([patch.delta(name).norm() for name in sorted(patch.layers)])}


@pytest.mark.parametrize("kind", KEPT)
def test_the_update_of_a_tiny_run_is_what_it_was(kind: str) -> None:
    given, config = (CLASS, ClassErasureConfig) if kind == "class" else (CONCEPT, ConceptErasureConfig)
    assert {field.name for field in dataclasses.fields(config)} == set(given), "say every setting here, a new one too"
    wanted = {name: value for name, value in load_file(GOLDEN).items() if name.startswith(kind)}
    found = updates(kind)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.norm() > 0
        assert float((found[name] - value).norm() / value.norm()) < TOLERANCE, name


if __name__ == "__main__":
    save_file({**updates("class"), **updates("concept")}, GOLDEN)
