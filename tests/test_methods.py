"""METHODS: each entry runs by the same call in the domains that it names, and its edit comes off to the last bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import weight_bytes
from text_models import WORDS, tiny_pipeline
from tiny_models import tiny_model

from semu_diffusion.domains import classes, concepts
from semu_diffusion.domains.config import ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.domains.vocabulary import Vocabulary
from semu_diffusion.erase.task import Task
from semu_diffusion.errors import InputError
from semu_diffusion.models.prompt_table import encode_prompts
from semu_diffusion.peers.methods import METHODS, Expected, read_methods
from semu_diffusion.pipelines.train.captions import cifar_vocabulary

FEW: dict[str, Any] = {
    "steps": 2, "forget_samples": 4, "kept_samples": 6, "batch_size": 4, "precision": "fp32",
}  # fmt: skip
EVERY = [(name, domain) for name, method in METHODS.items() for domain in method.domains]


def class_task(**settings: Any) -> tuple[Task[Any], ClassErasureConfig]:
    config = ClassErasureConfig(forget=("red",), **{**FEW, **settings})
    planned = classes.plan(tiny_model(), config)
    return classes.task(classes.bind(planned.model, planned), planned, config), config


def concept_task(
    vocabulary: Vocabulary | None = None, extra: tuple[str, ...] = (), **settings: Any
) -> tuple[Task[Any], ConceptErasureConfig]:
    anchor = "dog" if settings.get("target", "fixed") == "fixed" else None
    config = ConceptErasureConfig(concept=("cat",), anchor=anchor, guidance_scale=3.0, **{**FEW, **settings})
    planned = concepts.plan(tiny_pipeline(), config, vocabulary)
    model = concepts.bind(tiny_pipeline(), planned, extra)
    return concepts.task(model, planned, config), config


@pytest.mark.parametrize(("name", "domain"), EVERY, ids=lambda word: word)
def test_a_method_changes_predictions_and_comes_off_to_the_last_bit(name: str, domain: str) -> None:
    method = METHODS[name]
    short = {key: value for key, value in method.overrides.items() if key not in FEW}
    if name == "speed":  # the tokens of the tiny model span all of its sixteen directions
        method = dataclasses.replace(method, overrides={"threshold": 1.0})
    task, config = class_task(**short) if domain == "class" else concept_task(**short)
    before = weight_bytes(task.model.denoiser)
    result = method.erase(task, config)
    assert weight_bytes(task.model.denoiser) == before
    x = torch.randn(2, *task.model.latent_shape, generator=torch.Generator().manual_seed(1))
    t, rows = torch.tensor([10, 60]), torch.tensor([task.forget[0]] * 2)
    with torch.no_grad():
        old = task.model.predict(x, t, rows)
        with result.edit.applied(task.model) as edited:
            new = edited.predict(x, t, rows)
        assert not torch.equal(old, new)
        assert torch.equal(task.model.predict(x, t, rows), old)
    assert weight_bytes(task.model.denoiser) == before
    assert result.edit.trained_parameters >= 0
    assert result.edit.nbytes >= 0
    assert sum(result.seconds.values()) > 0


def test_the_remap_answers_every_sentence_with_a_known_word_and_not_the_word_held_back() -> None:
    asked = ("the cat", "a tomcat here", "the bird")
    task, config = concept_task(cifar_vocabulary(WORDS), asked)
    edit = METHODS["remap"].run(task, config, None).edit
    with edit.applied(task.model) as edited:
        for prompt, answer in (("the cat", "the dog"), ("a tomcat here", "a tomcat here"), ("the bird", "the bird")):
            expected = encode_prompts(type(task.model), task.model.pipeline, [answer]).embeddings[0]
            assert torch.allclose(edited.table.embeddings[edited.row(prompt)], expected, atol=1e-5)
        assert edited.table.prompts[-1] == ""
        assert edited.denoiser is task.model.denoiser
    assert edit.trained_parameters == 0


def test_a_variant_of_a_method_is_a_line_of_json(tmp_path: Path) -> None:
    file = tmp_path / "methods.json"
    file.write_text(json.dumps({"rank-4": {"base": "null-space", "max_rank": 4, "layers": ["attention"]}}))
    found = read_methods(file)["rank-4"]
    assert found == dataclasses.replace(
        METHODS["null-space"],
        name="rank-4",
        title="rank-4",
        overrides={"retain": "none", "max_rank": 4, "layers": ("attention",)},
    )
    file.write_text(json.dumps({"slow": {"lr": 1e-3}}))
    assert read_methods(file)["slow"].knob is None  # it has been decided on
    seen = {"figure": "revival", "value": 0.5, "tolerance": 0.1, "thing": "cat"}
    file.write_text(json.dumps({"held": {"base": "uce", "preserve": 1.0, "expected": [seen]}}))
    held = read_methods(file)["held"]
    assert (held.shared, held.knob, held.expected) == ({}, None, (Expected("revival", 0.5, 0.1, thing="cat"),))


def test_a_setting_that_one_method_alone_has_reaches_it_by_its_name() -> None:
    task, config = concept_task()
    one, other, again = (
        dataclasses.replace(METHODS["uce"], overrides=own).erase(task, config).edit.values
        for own in ({}, {"preserve": 10.0}, {"preserve": 0.1})
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("content", "said"), [
    ("{", "is not readable JSON"), ("[]", "needs"), ("{}", "names none"), ('{"a": 3}', "needs"),
    ('{"a": {"base": "magic"}}', "no method 'magic'"), ('{"a": {"base": "uce", "preserve": -1}}', "preserve must be"),
    ('{"a": {"expected": {"unlearning_accuracy": 0.9}}}', "needs"),
    ('{"a": {"expected": [{"figure": "beauty", "value": 1, "tolerance": 0}]}}', "no figure 'beauty'; there are"),
])  # fmt: skip
def test_a_file_of_no_methods_is_refused_in_one_line(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "methods.json"
    file.write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        read_methods(file)
    assert "\n" not in str(caught.value)


def test_every_method_stands_on_the_page_of_methods() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "methods.md").read_text()
    assert not [name for name in METHODS if f"`{name}`" not in page]


def test_the_methods_that_make_bench_names_are_there() -> None:
    root = Path(__file__).resolve().parents[1]
    lines = [line.split() for line in (root / "Makefile").read_text().splitlines() if "/semu benchmark" in line]
    named = [word for line in lines if "--methods" in line for word in line[line.index("--methods") + 1].split(",")]
    assert {"default", "closed-form", "copy", "remap"} <= set(named)
    for word in named:
        assert word in METHODS or read_methods(root / word)
