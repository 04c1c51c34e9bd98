"""Folders of strangers: whatever is done to a file of one, the command goes on with whole weights, or refuses in one line.

``SEMU_MUTANTS=2000`` makes the test that much longer (`make stress`).
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mutants import BYTES, TEXTS, Hang, within
from safetensors.torch import load_file, save_file
from saved_models import saved_model
from text_models import WORDS, tiny_pipeline

from semu_diffusion.domains.config import PRESETS
from semu_diffusion.errors import InputError
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.files import read_json
from semu_diffusion.models.base import DiffusionModel
from semu_diffusion.models.checkpoints import load_text_pipeline
from semu_diffusion.options import build_config
from semu_diffusion.pipelines.cli.commands.erase_concept import main as erase_concept
from semu_diffusion.pipelines.patches.push import push
from semu_diffusion.pipelines.patches.scored import scored
from semu_diffusion.pipelines.report.table import table
from semu_diffusion.pipelines.runs.config import EraseClassConfig, EraseConceptConfig, EvaluatePatchConfig
from semu_diffusion.pipelines.runs.domains import load_classes, load_concepts
from semu_diffusion.pipelines.runs.scorer import make_scorer
from semu_diffusion.pipelines.train.captions import cifar_vocabulary

MUTANTS = int(os.environ.get("SEMU_MUTANTS", "60"))
Weights = dict[str, torch.Tensor]


def survived(files: Sequence[Path], read: Callable[[Path], None], count: int) -> int:
    """How many of so many mutants of the ``files`` are read; the others are refused in one line, none in another way."""
    accepted, wrong = 0, []
    for seed in range(count):
        rng = random.Random(seed)
        path = rng.choice(files)
        whole = path.read_bytes()
        mutation = rng.choice(TEXTS if path.suffix == ".json" else BYTES)
        path.write_bytes(mutation(whole, rng))
        try:
            with within(60):
                read(path)
            accepted += 1
        except InputError as error:
            if not str(error).isprintable():
                wrong.append((seed, path.name, f"not one printable line: {error}"))
        except (Exception, Hang) as error:
            wrong.append((seed, path.name, f"{mutation.__name__}: {error!r}"[:300]))
        finally:
            path.write_bytes(whole)
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:20]}"
    return accepted


def weights_of(pipeline: Any) -> Weights:
    parts = {name: getattr(pipeline, name, None) for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
    return {f"{part}.{name}": value for part, m in parts.items() if m is not None for name, value in m.state_dict().items()}


def works(model: DiffusionModel, expected: Weights) -> None:
    """The weights are the file's, and a sample of them is a picture."""
    found = weights_of(model.pipeline)  # type: ignore[attr-defined]
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    (image,) = model.sample([0] if model.conditional else None, [0], steps=2, guidance_scale=2.0)
    assert image.shape == (1, *model.image_shape)
    assert image.isfinite().all()


def test_a_mutated_class_model_is_refused_in_one_line_or_has_its_own_weights(tmp_path: Path) -> None:
    source = saved_model(tmp_path)

    def read(_: Path | None = None) -> DiffusionModel:
        return load_classes(EraseClassConfig(forget=("red",), model=source, classifier="none")).model

    expected = weights_of(read().pipeline)  # type: ignore[attr-defined]
    count = MUTANTS // 4
    accepted = survived(list(tmp_path.rglob("*.json")), lambda _: works(read(), expected), count)
    assert accepted < 0.8 * count


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_mutated_text_model_is_refused_in_one_line_or_has_its_own_weights(tmp_path: Path, family: str) -> None:
    tiny_pipeline(family).save_pretrained(tmp_path)
    cifar_vocabulary(WORDS).save(tmp_path)

    def read(_: Path | None = None) -> DiffusionModel:
        subject = load_concepts(EraseConceptConfig(concept=("cat",), model=str(tmp_path), images_per_condition=1))
        make_scorer(subject)
        return subject.model

    expected = weights_of(read().pipeline)  # type: ignore[attr-defined]
    files = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".json", ".txt"))
    count = MUTANTS // (4 if family == "sd15" else 8)
    assert survived(files, lambda _: works(read(), expected), count) < 0.8 * count


class Hub:
    """Takes everything; what it was sent holds finite numbers alone."""

    def create_repo(self, repo: str, **_: Any) -> str:
        return repo

    def upload_folder(self, folder_path: str, **_: Any) -> None:
        for path in Path(folder_path).rglob("*.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path
        for path in Path(folder_path).rglob("*.json"):
            json.dumps(json.loads(path.read_text()), allow_nan=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tiny_pipeline().save_pretrained(folder / "model")
    counts = dict.fromkeys(("steps", "forget-samples", "kept-samples", "judged-prompts", "sampling-steps"), 2)
    flags = [word for name, count in {**counts, "images-per-prompt": 1}.items() for word in (f"--{name}", str(count))]
    words = ["cat", "--anchor", "dog", "--model", str(folder / "model"), "--classifier", "none", *flags]
    assert erase_concept([*words, "--output", str(folder / "run")]) == 0
    return folder / "run"


def replay(path: Path) -> None:
    json.dumps(vars(build_config(EraseConceptConfig, {}, PRESETS, str(path))), allow_nan=False)


def evaluated(path: Path) -> None:
    patch = path.with_name("patch.safetensors")
    scored(EvaluatePatchConfig(patch=str(patch), classifier="none"))


def shown(path: Path) -> None:
    evaluation = Evaluation.from_json(read_json(path))
    table(evaluation, {}, path.parent)
    json.dumps(evaluation.to_json(), allow_nan=False)


def test_mutated_records_numbers_and_loras_of_a_run_are_refused_in_one_line_or_read_as_they_are(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    record, numbers, loras = run / "run.json", run / "metrics.json", list((run / "lora").glob("*"))
    assert loras
    for files, read in (
        ([record], replay),
        ([record], evaluated),
        ([numbers], shown),
        ([record, numbers, *loras], lambda _: push(run, "me/no-cat")),
        (loras, lambda path: load_text_pipeline(str(path))),
    ):
        survived(files, read, 3 * MUTANTS // 40)


def test_a_lora_of_numbers_that_are_none_is_not_pushed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    path = next((run / "lora").glob("*.safetensors"))
    whole = path.read_bytes()
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path)
    try:
        with pytest.raises(InputError, match=r"not a LoRA of this run.*not finite"):
            push(run, "me/no-cat")
    finally:
        path.write_bytes(whole)
