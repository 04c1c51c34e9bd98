"""metrics.json: what was written comes back, and runs of schema version 1 are still read."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semu_diffusion.errors import InputError
from semu_diffusion.eval.results import (
    ClipScore,
    Cost,
    Distance,
    Evaluation,
    LoraCheck,
    Network,
    PatchSize,
    Protection,
    Protocol,
    Revival,
    Scores,
    SideEffects,
)
from semu_diffusion.pipelines.report.page.verdicts import verdicts
from semu_diffusion.pipelines.report.table import table

REVIVAL = Revival(0.5, 60, 150, 3e-2, 32, 50, 3.0, 0, 64, "made by the original model", 0.2, 0.1)
FULL = Evaluation(
    kind="concept",
    erased=("cat", "dog"),
    protocol=Protocol(0, "DDIM", 25, 3.0, 8, 80, {"forget": ("a cat",), "in_domain": ()}, {"object": Network("judge", "0f")}),
    before=Scores(forget_accuracy=0.9, samples={"forget": 8}, clip_score={"forget": ClipScore(25.0, 0.6, 0.25, 8, "clip")}),
    after=Scores(
        intervals={"forget": (0.0, 0.2)}, per_condition={"a cat": 0.1}, judged_as={"cat": {"dog": 0.9, "cat": 0.1}}
    ).with_probes({"pseudo-word": {"cat": REVIVAL}, "nothing": {}}),
    side_effects=SideEffects({"mse": 0.1, "ssim": 0.9}, {"a dog": {"mse": 0.1, "ssim": 0.9}}),
    distances={"kid": Distance(0.0, 0.01, 96, 96, "own", True, Network("features", "0a", 256))},
    patch=PatchSize(10, 100, 1000, 4000, 0.1),
    lora=LoraCheck(1e-7, 1.0, True, True),
    protection=Protection(0.5, 0.01, 0.99),
    cost=Cost({"train": None, "evaluate": 3.0}, 1000),
    collapsed="the kept samples all look alike",
)


def test_what_was_written_comes_back() -> None:
    assert Evaluation.from_json(json.loads(json.dumps(FULL.to_json()))) == FULL
    assert FULL.to_json()["schema_version"] == 2


def test_revival_is_the_strongest_probes_mean_over_what_was_erased() -> None:
    weak, strong = (Revival(share, *list(vars(REVIVAL).values())[1:]) for share in (0.1, 0.7))
    found = Scores().with_probes({"a": {"cat": weak, "dog": strong}, "b": {"cat": REVIVAL, "dog": REVIVAL}, "c": {}})
    assert found.revival == 0.5
    assert set(found.probes) == {"a", "b"}
    assert found.revival_samples == 120
    assert Scores().with_probes({}).revival is None


def test_what_a_probe_brings_back_without_learning_is_no_revival() -> None:
    cheap = Revival(0.9, 24, sampling_steps=20, control=1.0)
    found = Scores().with_probes({"completion": {"cat": cheap}, "class-vector": {"cat": REVIVAL}})
    assert (found.revival, found.revival_samples) == (0.5, 60)
    assert found.probes["completion"]["cat"].control == 1.0
    assert Scores().with_probes({"completion": {"cat": cheap}}).revival is None


def test_the_cost_of_an_erasure_that_was_not_part_of_the_run_is_unknown() -> None:
    assert FULL.cost.erasure is None
    assert Cost({"prepare": 1.0, "train": 2.0, "evaluate": 3.0}).erasure == 3.0
    assert Cost({"evaluate": 3.0}).erasure is None


def old_class_run() -> dict[str, Any]:
    score = {
        "forget_accuracy": 0.9, "unlearning_accuracy": 0.1, "retain_accuracy": 0.8, "unconditional_share": 0.1,
        "per_class": {"cat": 0.9, "dog": 0.8}, "answers": {"cat": {"cat": 0.9, "dog": 0.1}}, "revival": None,
    }  # fmt: skip
    return {
        "protocol": {
            "seed": 0, "images_per_class": 500, "sampler": "DDIM", "steps": 50, "guidance_scale": 3.0,
            "classifier": {"name": "judge", "sha256": "0f"}, "fid_extractor": {"name": "features", "dim": 8, "sha256": "0a"},
            "fid_reference": "the original model's own samples, same seeds",
        },
        "before": score, "after": score,
        "side_effects": {"paired_mse": 0.1, "paired_ssim": 0.9, "per_class": {"dog": {"mse": 0.1, "ssim": 0.9}}},
        "fid": {"retain_before": 0.0, "retain_after": 4.5},
        "patch": {"layers": 10, "trained_parameters": 100, "model_parameters": 1000, "fraction": 0.1, "bytes": 4000},
        "cost": {"seconds": {"collect": 1.0, "subspace": 1.0, "train": 2.0, "evaluate": 3.0}, "peak_memory_bytes": 1000},
    }  # fmt: skip


def old_concept_run() -> dict[str, Any]:
    score = {
        "forget_accuracy": 0.9, "unlearning_accuracy": 0.1, "paraphrase_forget_accuracy": 0.7, "in_domain_retain_accuracy": 0.8,
        "cross_domain_retain_accuracy": 0.6, "unconditional_share": 0.1, "revival": 0.4, "per_prompt": {"a cat": 0.9},
        "clip_score": {
            "model": "clip", "forget": {"score": 25.0, "clipscore": 0.6}, "retain": {"score": 26.0, "clipscore": 0.7},
        },
        "answers": {"cat": {"cat": 0.9}}, "samples": {"forget": 8, "paraphrase": 8, "in_domain": 8, "cross_domain": 8},
    }  # fmt: skip
    pairs = {"paired_mse": 0.1, "paired_ssim": 0.9, "paired_lpips": None}
    return {
        "protocol": {
            "seed": 0, "images_per_prompt": 8, "sampler": "DDIM", "steps": 25, "guidance_scale": 3.0,
            "forget_prompts": ["a cat"], "paraphrase_prompts": ["the cat"], "in_domain_prompts": ["a dog"],
            "cross_domain_prompts": ["a sketch"], "unconditional_samples": 80,
            "classifiers": {"object": {"name": "judge", "sha256": "0f"}}, "revival": None,
        },
        "before": score, "after": score, "forget_effect": pairs, "side_effects": pairs, "unprompted_effect": pairs,
        "patch": {"layers": 10, "trained_parameters": 100, "model_parameters": 1000, "fraction": 0.1, "bytes": 4000},
        "lora": {"relative_difference": 1e-7, "share_of_effect": 1.0, "same": True, "unloaded_equal": True},
        "protection": {"gradient_left": 0.5, "felt_by_kept_inputs": 0.01, "least_energy_held": 0.99},
        "cost": {"seconds": {"prepare": 1.0, "train": 2.0, "evaluate": 3.0}, "peak_memory_bytes": 1000},
    }  # fmt: skip


def test_runs_of_the_first_version_are_read() -> None:
    found = Evaluation.from_json(old_class_run())
    assert (found.kind, found.erased, found.schema_version) == ("class", ("cat",), 2)
    assert found.after.retain_accuracy == found.after.in_domain_accuracy == 0.8
    assert found.after.judged_as == {"cat": {"cat": 0.9, "dog": 0.1}}
    assert found.protocol.judges == {"object": Network("judge", "0f")}
    assert found.fid is not None
    assert (found.fid.after, found.fid.extractor, found.fid.paired) == (4.5, Network("features", "0a", 8), True)
    assert found.side_effects == SideEffects({"mse": 0.1, "ssim": 0.9}, {"dog": {"mse": 0.1, "ssim": 0.9}})
    assert found.cost.erasure == 4.0

    found = Evaluation.from_json(old_concept_run())
    assert (found.kind, found.erased) == ("concept", ("cat",))
    assert (found.after.paraphrase_accuracy, found.after.cross_domain_accuracy) == (0.7, 0.6)
    assert found.after.retain_accuracy == pytest.approx(0.7)
    assert found.after.clip_score is not None
    assert found.after.clip_score["retain"].clipscore == 0.7
    assert found.protocol.conditions["in_domain"] == ("a dog",)
    assert found.side_effects == found.forget_effect == SideEffects({"mse": 0.1, "ssim": 0.9})
    assert found.protection == Protection(0.5, 0.01, 0.99)
    assert found.lora == LoraCheck(1e-7, 1.0, True, True)


def test_old_runs_have_a_card_too() -> None:
    from semu_diffusion.pipelines.report.card import patch_card

    base = {"source": "embedded", "revision": None}
    card = patch_card({"config": {"forget": ["cat"], "matricisation": "full"}, "base_model": base}, old_class_run())
    assert "| right on others of its kind | 80.0 % | 80.0 % |" in card
    card = patch_card({"config": {"concept": ["cat"], "matricisation": "full"}, "base_model": base}, old_concept_run())
    assert "| brought back by a learned vector | 40.0 % | 40.0 % |" in card


@pytest.mark.parametrize("content", [{"schema_version": 3}, {}, [], {"protocol": {}, "before": {}, "after": {}}, None])
def test_what_is_no_metrics_file_is_one_line(content: Any) -> None:
    with pytest.raises(InputError) as refused:
        Evaluation.from_json(content)
    assert "\n" not in str(refused.value)


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in content.items() if isinstance(content, dict) else enumerate(content if isinstance(content, list) else ()):
        yield (*path, key)
        yield from leaves(value, (*path, key))


def test_a_number_that_is_missing_anywhere_is_a_dash_or_refused() -> None:
    counted = {"samples": {"forget": 8, "in_domain": 8}, "in_domain_accuracy": 0.9, "clip_score": FULL.before.clip_score}
    before = dataclasses.replace(FULL.before, **counted)
    after = dataclasses.replace(FULL.after, forget_accuracy=0.1, unlearning_accuracy=0.9, **counted)
    whole = dataclasses.replace(FULL, before=before, after=after, forget_effect=FULL.side_effects, collapsed=None)
    read = refused = 0
    for path in leaves(json.loads(json.dumps(whole.to_json()))):
        for value in (None, {}, []):
            content = json.loads(json.dumps(whole.to_json()))
            place = functools.reduce(operator.getitem, path[:-1], content)
            place[path[-1]] = value
            try:
                found = Evaluation.from_json(content)
            except InputError:
                refused += 1
                continue
            read += 1
            table(found, {}, Path("run"))
            verdicts(found)
    assert min(read, refused) > 50
