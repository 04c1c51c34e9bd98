"""Promises of `semu apply`, `semu export`, `semu push` and the model card: what leaves the house is what was made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import random_patch
from safetensors.torch import load as tensors_of
from safetensors.torch import load_file
from saved_models import saved_model
from text_models import tiny_pipeline
from torch import nn

from semu_diffusion.domains.vocabulary import read_vocabulary
from semu_diffusion.erase.face import erase_concept
from semu_diffusion.matrices import to_matrices
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.patches.interference import interference
from semu_diffusion.patches.lora import DIFFUSERS_LORA, KOHYA_LORA
from semu_diffusion.pipelines.cli.commands.erase_concept import main as erase
from semu_diffusion.pipelines.cli.main import main
from semu_diffusion.pipelines.patches.push import public_record
from semu_diffusion.pipelines.report.card import patch_card
from semu_diffusion.pipelines.train.captions import cifar_vocabulary

Capture = pytest.CaptureFixture[str]
QUICK: dict[str, Any] = {"steps": 3, "forget_samples": 4, "kept_samples": 4, "retain_prompts": ("a tree",)}
FLAGS = [
    "--steps", "2", "--forget-samples", "4", "--kept-samples", "4", "--images-per-prompt", "1",
    "--judged-prompts", "2", "--sampling-steps", "2", "--anchor", "dog",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def patches(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("patches")
    made = []
    for concept, anchor in (("cat", "dog"), ("bird", "dog")):
        patch = erase_concept(load(model), concept, anchor=anchor, **QUICK)
        made.append(patch.save(folder / f"{concept}.safetensors"))
    return made[0], made[1]


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "cat"
    assert erase(["cat", "--model", str(model), *FLAGS, "--output", str(run)]) == 0
    return run


def load(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load(folder).unet.state_dict()
    return found


def test_applying_two_patches_writes_the_model_that_has_both(
    model: Path, patches: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["apply", *map(str, patches), "--model", str(model), "--output", str(tmp_path / "both")]) == 0
    pipeline = load(model)
    for path in patches:
        ErasurePatch.load(path).apply(pipeline.unet)
    wanted, found = pipeline.unet.state_dict(), weights(tmp_path / "both")
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    out = capsys.readouterr().out
    assert "layers in common" in out
    assert "Interference:" in out


def test_interference_is_one_for_the_same_update_and_none_for_disjoint_layers(patches: tuple[Path, Path]) -> None:
    a, b = (ErasurePatch.load(path) for path in patches)
    same = interference(a, a.scale(0.5))
    assert (same.cosine, same.share) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-3))
    assert interference(a, a.scale(-1)).cosine == pytest.approx(-1, abs=1e-4)
    found = interference(a, b)
    dense = [(a.delta(name).double(), b.delta(name).double()) for name in b.layers if name in a.layers]
    sizes = [sum(float(p.delta(n).double().square().sum()) for n in p.layers) for p in (a, b)]
    assert found.cosine == pytest.approx(sum(float((x * y).sum()) for x, y in dense) / (sizes[0] * sizes[1]) ** 0.5, abs=1e-6)
    inside = 0.0
    for name in (n for n in b.layers if n in a.layers):  # |P_A D_B Q_A|^2, made dense
        rank = int(a.layers[name].ranks[0])
        p, q = (torch.linalg.qr(f[0, :, :rank].double()).Q for f in (a.layers[name].left, a.layers[name].right))
        inside += float((p.T @ b.delta(name).double().flatten(1) @ q).square().sum())
    assert found.share == pytest.approx(inside / sizes[1], abs=1e-6)
    names = list(a.layers)
    halves = [ErasurePatch({n: a.layers[n] for n in part}, a.fingerprint) for part in (names[::2], names[1::2])]
    apart = interference(*halves)
    assert (apart.shared_layers, apart.cosine, apart.share) == (0, 0, 0)


def test_interference_is_that_of_the_updates_however_their_convolutions_are_split() -> None:
    """A patch per channel with matrices of different rank, against another and against one of whole convolutions."""
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Linear(5, 5))
    whole, split = (random_patch(model, seed=1, matricisation=form) for form in ("full", "per_channel"))
    layer = split.layers["0"]
    core, ranks = layer.core.clone(), layer.ranks.clone()
    core[0, 1:], core[0, :, 1:], ranks[0] = 0, 0, 1
    left, right = layer.left.clone(), layer.right.clone()
    left[0, :, 1:], right[0, :, 1:] = 0, 0
    uneven = ErasurePatch({"0": dataclasses.replace(layer, left=left, core=core, right=right, ranks=ranks)}, split.fingerprint)
    for a, b in ((uneven, split), (uneven, whole), (whole, uneven), (split, whole)):
        inside = size = 0.0
        for name, one in b.layers.items():
            size += float(one.delta().double().square().sum())
            if name not in a.layers:
                continue
            own = a.layers[name]
            matrices = to_matrices(one.delta().double(), own.matricisation)
            for matrix, u, v, rank in zip(matrices, own.left.double(), own.right.double(), own.ranks.tolist(), strict=True):
                p, q = (torch.linalg.qr(factor[:, :rank]).Q for factor in (u, v))
                inside += float((p.T @ matrix @ q).square().sum())
        assert interference(a, b).share == pytest.approx(inside / size, rel=1e-5)


def test_a_strength_that_a_patch_was_saved_with_counts(model: Path, patches: tuple[Path, Path], tmp_path: Path) -> None:
    gentle = ErasurePatch.load(patches[0]).scale(0.5).save(tmp_path / "gentle.safetensors")
    flags = ["--model", str(model), "--strength", "0.5"]
    assert main(["export", str(gentle), *flags, "--merged", str(tmp_path / "merged")]) == 0
    assert main(["apply", str(gentle), *flags, "--output", str(tmp_path / "applied")]) == 0
    pipeline = load(model)
    ErasurePatch.load(patches[0]).scale(0.25).apply(pipeline.unet)
    wanted = pipeline.unet.state_dict()
    for folder in ("merged", "applied"):
        assert all(torch.equal(value, wanted[name]) for name, value in weights(tmp_path / folder).items())


def test_a_models_vocabulary_goes_where_the_model_goes(patches: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    cifar_vocabulary(("cat", "dog")).save(tmp_path / "model")
    assert main(["export", str(patches[0]), "--model", str(tmp_path / "model"), "--merged", str(tmp_path / "merged")]) == 0
    assert read_vocabulary(tmp_path / "merged") == read_vocabulary(tmp_path / "model") is not None
    assert not any(str(tmp_path) in config.read_text() for config in (tmp_path / "merged").rglob("*.json"))


def test_export_writes_a_pipeline_that_predicts_as_the_patched_model_and_the_lora(
    model: Path, patches: tuple[Path, Path], tmp_path: Path
) -> None:
    flags = ["--model", str(model), "--merged", str(tmp_path / "merged"), "--lora", str(tmp_path / "lora"), "--strength", "0.5"]
    assert main(["export", str(patches[0]), *flags]) == 0
    pipeline = load(model)
    ErasurePatch.load(patches[0]).scale(0.5).apply(pipeline.unet)
    wanted, found = pipeline.unet.state_dict(), weights(tmp_path / "merged")
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {DIFFUSERS_LORA, KOHYA_LORA}


def test_merge_and_export_take_patches_of_classes_and_of_concepts(
    model: Path, patches: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    from saved_models import QUICK as CLASS_QUICK

    from semu_diffusion.models.checkpoints import load_class_conditional
    from semu_diffusion.pipelines.cli.commands.erase_class import main as erase_class

    assert main(["merge", str(patches[0]), "--model", str(model), "--output", str(tmp_path / "words")]) == 0
    pipeline = load(model)
    ErasurePatch.load(patches[0]).apply(pipeline.unet)
    wanted = pipeline.unet.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in weights(tmp_path / "words").items())

    source, run = saved_model(tmp_path / "ddpm"), tmp_path / "run"
    assert erase_class(["red", "--model", source, *CLASS_QUICK, "--classifier", "none", "--output", str(run)]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--merged", str(tmp_path / "classes"), "--lora", str(tmp_path / "peft")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'peft'}: LoRA files for PEFT\n")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "peft" / name).read_bytes() == (run / "lora" / name).read_bytes()
    patched, merged = (load_class_conditional(folder) for folder in (source, tmp_path / "classes"))
    ErasurePatch.load(run / "patch.safetensors").apply(patched.denoiser)
    wanted = patched.denoiser.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in merged.denoiser.state_dict().items())


def test_a_run_folders_patch_finds_its_model_and_one_without_its_run_asks_for_it(
    finished: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["export", str(finished), "--lora", str(tmp_path / "lora")]) == 0
    again, first = (load_file(folder / DIFFUSERS_LORA) for folder in (tmp_path / "lora", finished / "lora"))
    assert again.keys() == first.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((finished / "patch.safetensors").read_bytes())
    capsys.readouterr()
    for command in (["export", str(alone), "--lora", str(tmp_path / "no")], ["grid", str(alone), "--output", "no.png"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"{alone} was made for a model called {model.name}, which is not there: say where it lies with --model" in said
    (tmp_path / "run.json").write_text(json.dumps({"config": {"model": str(tmp_path / "another")}}))  # of another run
    assert main(["export", str(alone), "--lora", str(tmp_path / "no")]) == 2
    assert main(["export", str(alone), "--lora", str(tmp_path / "yes"), "--model", str(model)]) == 0


def test_no_file_that_may_be_shared_holds_a_path_of_this_machine(finished: Path, model: Path, tmp_path: Path) -> None:
    from saved_models import QUICK as CLASS_QUICK
    from saved_models import saved_judge

    from semu_diffusion.pipelines.cli.commands.erase_class import main as erase_class

    ddpm, judge = saved_model(tmp_path / "ddpm"), saved_judge(tmp_path / "judge")
    flags = ["red", "--model", ddpm, *CLASS_QUICK, "--classifier", judge, "--output", str(tmp_path / "red")]
    assert erase_class(flags) == 0
    assert main(["export", str(finished), "--lora", str(tmp_path / "lora"), "--merged", str(tmp_path / "merged")]) == 0
    for run, base in ((finished, model), (tmp_path / "red", Path(ddpm))):
        assert ErasurePatch.load(run / "patch.safetensors").metadata["base_model"] == base.name
        shared = [path for path in run.rglob("*") if path.is_file() and path.name not in ("run.json", "metrics.json")]
        assert {"patch.safetensors", "README.md"} <= {path.name for path in shared}
        assert not [path for path in shared if str(base.parent).encode() in path.read_bytes()]
    out = [path for folder in ("lora", "merged") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert not [path for path in out if str(model).encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "PATCH"], "say what to write"),
        (["export", "PATCH", "--merged", "HERE"], "exists already"),
        (["export", "PATCH", "--merged", "NEW", "--lora", "NEW"], "one is or lies in the other"),
        (["export", "PATCH", "--merged", "NEW", "--lora", "NEW/lora"], "one is or lies in the other"),
        (["export", "PATCH", "--merged", "PATCH/new"], "lies in what is a file"),
        (["export", "PATCH", "--merged", "NEW", "--model", "OTHER"], "made for|other weights|not the model"),
        (["export", "nothing.safetensors", "--lora", "NEW"], "no such patch file"),
        (["apply", "PATCH", "PATCH", "--model", "MODEL", "--output", "NEW"], "already applied"),
        (["apply", "PATCH", "CLASS", "--model", "MODEL", "--output", "NEW"], "go on different models"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    arguments: list[str], said: str, model: Path, patches: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    import re

    tiny_pipeline(seed=1).save_pretrained(tmp_path / "other")
    patch = ErasurePatch.load(patches[0])
    ErasurePatch(patch.layers, patch.fingerprint, {"forget": ["cat"]}).save(tmp_path / "class.safetensors")
    places = {
        "PATCH": patches[0], "HERE": tmp_path, "NEW": tmp_path / "new", "OTHER": tmp_path / "other", "MODEL": model,
        "CLASS": tmp_path / "class.safetensors",
    }  # fmt: skip
    words = [re.sub(r"^[A-Z]+", lambda found: str(places.get(found[0], found[0])), word) for word in arguments]
    assert main(words) == 2
    assert re.search(said, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- card, push


def test_the_card_says_what_was_measured_and_what_was_not(finished: Path) -> None:
    card = (finished / "README.md").read_text()
    metrics = json.loads((finished / "metrics.json").read_text())
    assert card.startswith("---\nlibrary_name: diffusers\n") or "library_name: diffusers" in card.split("---")[1]
    assert "# Without: cat" in card
    assert "cat is replaced by 'dog'" in card
    assert f"| {metrics['side_effects']['paired']['mse']:.4f} |" in card
    measured, missing = card.split("Not measured: ")
    assert "unlearning accuracy" in missing.split("\n")[0]
    assert "| unlearning accuracy" not in measured
    assert "Asked for" not in card  # nothing was judged
    after = {**metrics["after"], "unlearning_accuracy": 0.875, "judged_as": {"cat": {"dog": 0.875, "cat": 0.125}}}
    judged = patch_card(json.loads((finished / "run.json").read_text()), {**metrics, "after": after})
    assert "| unlearning accuracy | – | 87.5 % |" in judged
    assert "Asked for cat it now makes what the judge calls dog 88 %, cat 12 %." in judged


@pytest.mark.parametrize("name", ["a: b", "# x", "{{ 7*7 }}", "a|b", "<script>", "x\n---\ny: z", "\x1b[31mred", "yes", "猫"])
def test_the_card_of_any_name_is_one_heading_whole_tables_and_its_own_metadata(name: str, finished: Path) -> None:
    from huggingface_hub import ModelCard

    record, metrics = (json.loads((finished / one).read_text()) for one in ("run.json", "metrics.json"))
    plain = patch_card(record, metrics)
    record["config"]["concept"], record["anchors"], metrics["erased"] = [name], {name: name}, [name]
    metrics["after"]["judged_as"] = {name: {name: 1.0}}
    card = patch_card(record, metrics)
    assert ModelCard(card).data.to_dict() == ModelCard(plain).data.to_dict()
    assert [line[0] for line in card.splitlines() if line.startswith("#")] == [
        line[0] for line in plain.splitlines() if line.startswith("#")
    ]
    assert "49" not in card.split("## Load it")[0]
    assert all(line.replace("\\|", "").count("|") == 4 for line in card.splitlines() if line.startswith("|"))
    assert "\x1b" not in card
    assert "<script>" not in card


def run_the_cards_python(folder: Path, card: str, pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has who copies the card's lines, in the card's folder."""
    from test_readme import fences

    known: dict[str, Any] = {"pipe": pipeline}
    monkeypatch.chdir(folder)
    for block in fences(card, "python"):
        exec(block, known)
    return known


def test_the_cards_lines_load_lora_and_patch_from_the_folder_and_from_the_hub(
    finished: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    assert main(["push", str(finished), "me/no-cat"]) == 0
    place = tmp_path / "hub" / "models--me--no-cat"  # the Hub's cache, as it is after a download
    for name, content in FakeHub.sent.items():
        (place / "snapshots" / "0a" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "snapshots" / "0a" / name).write_bytes(content)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0a")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    patched = load(model).unet
    ErasurePatch.load(finished / "patch.safetensors").apply(patched)
    wanted = patched.state_dict()
    for folder, card in ((finished, (finished / "README.md").read_text()), (tmp_path, FakeHub.sent["README.md"].decode())):
        lora, plain = card.split("With semu-diffusion:")
        pipeline = load(model)
        run_the_cards_python(folder, lora, pipeline, monkeypatch)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        fused = pipeline.unet.state_dict()
        assert all(torch.allclose(value, fused[name], atol=1e-5) for name, value in wanted.items())
        pipeline = load(model)
        run_the_cards_python(folder, plain, pipeline, monkeypatch)
        assert all(torch.equal(value, wanted[name]) for name, value in pipeline.unet.state_dict().items())


@pytest.mark.parametrize("told", ["mit", None, "broken"])
def test_the_card_has_the_base_models_license_and_relation(
    told: str | None, finished: Path, model: Path, tmp_path: Path
) -> None:
    record, metrics = (json.loads((finished / name).read_text()) for name in ("run.json", "metrics.json"))
    if told is not None:
        (tmp_path / "README.md").write_text("---\nlicense: [\n---\n" if told == "broken" else f"---\nlicense: {told}\n---\n")
    card = patch_card({**record, "base_model": {"source": str(tmp_path), "revision": None}}, metrics).split("---")[1]
    expected = "license: mit" if told == "mit" else "license: other\nlicense_name: that-of-the-base-model"
    assert expected in card
    assert "base_model" not in card
    embedded = patch_card({**record, "base_model": {"source": "embedded", "revision": None}}, metrics)
    assert "license: apache-2.0" in embedded
    hub = patch_card({**record, "base_model": {"source": "owner/name", "revision": "f00d"}}, metrics).split("---")[1]
    assert "license_link: https://huggingface.co/owner/name" in hub
    assert "base_model: owner/name\n" in hub
    assert "base_model_relation: adapter\n" in hub


def test_a_run_of_erase_class_is_carded_and_pushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saved_models import QUICK as CLASS_QUICK

    from semu_diffusion.models.checkpoints import load_class_conditional
    from semu_diffusion.pipelines.cli.commands.erase_class import main as erase_class

    source = saved_model(tmp_path / "ddpm")
    flags = ["--model", source, "--forget", "red", *CLASS_QUICK, "--classifier", "none", "--output", str(tmp_path / "run")]
    assert erase_class(flags) == 0
    card = patch_card(*(json.loads((tmp_path / "run" / name).read_text()) for name in ("run.json", "metrics.json")))
    assert "# Without: red" in card
    assert "lora" not in card.split("---")[1]
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    assert main(["push", str(tmp_path / "run"), "me/no-red"]) == 0
    assert {"lora/adapter_config.json", "lora/adapter_model.safetensors"} <= FakeHub.sent.keys()  # what PEFT opens
    assert not any(str(tmp_path).encode() in content for content in FakeHub.sent.values())
    own, sent = (tmp_path / "run" / "README.md").read_text(), FakeHub.sent["README.md"].decode()
    assert 'run = "me/no-red"' in sent
    assert 'hf_hub_download("me/no-red", "patch.safetensors")' in sent
    model = load_class_conditional(source)
    plain = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    adapted = run_the_cards_python(tmp_path / "run", own.split("With semu-diffusion:")[0], model.pipeline, monkeypatch)["unet"]
    patch, found = ErasurePatch.load(tmp_path / "run" / "patch.safetensors"), adapted.merge_and_unload().state_dict()
    for name in patch.layers:
        assert torch.allclose(found[f"{name}.weight"], plain[f"{name}.weight"] + patch.delta(name), atol=1e-5)


class FakeHub:
    """Remembers what it was given."""

    sent: dict[str, bytes]
    asked: tuple[str, bool]

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
        FakeHub.asked = (repo, private)
        return f"https://hub/{repo}"

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
        FakeHub.sent = {str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()}


def test_push_sends_patch_lora_card_and_numbers_and_nothing_of_the_machine(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    assert main(["push", str(finished), "me/no-cat", "--private"]) == 0
    assert FakeHub.asked == ("me/no-cat", True)
    assert {"patch.safetensors", "README.md", "metrics.json", "run.json", f"lora/{DIFFUSERS_LORA}"} <= FakeHub.sent.keys()
    (tmp_path / "sent.safetensors").write_bytes(FakeHub.sent["patch.safetensors"])
    assert ErasurePatch.load(tmp_path / "sent.safetensors").same_as(ErasurePatch.load(finished / "patch.safetensors"))
    for name in ("patch.safetensors", f"lora/{DIFFUSERS_LORA}", f"lora/{KOHYA_LORA}"):
        own, sent = tensors_of((finished / name).read_bytes()), tensors_of(FakeHub.sent[name])
        assert own.keys() == sent.keys()
        assert all(torch.equal(tensor, sent[key]) for key, tensor in own.items())
    assert not any(str(finished.parent.parent).encode() in content for content in FakeHub.sent.values())
    told = json.loads(FakeHub.sent["run.json"])
    assert str(finished.parent) not in FakeHub.sent["run.json"].decode()
    assert "command" not in told
    assert told["config"]["concept"] == ["cat"]
    assert capsys.readouterr().out.strip() == "https://hub/me/no-cat"


def test_an_unfinished_run_or_a_refusing_hub_is_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Refusing(FakeHub):
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
            raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi", Refusing)
    assert main(["push", str(finished), "me/no-cat"]) == 2
    assert "no network" in capsys.readouterr().err
    assert main(["push", str(tmp_path), "me/no-cat"]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_a_relative_path_of_one_slash_is_no_id_of_the_hub(finished: Path) -> None:
    record, metrics = (json.loads((finished / name).read_text()) for name in ("run.json", "metrics.json"))
    for revision, said in (("f00d", "base_model: models/mine"), (None, "made by semu-diffusion")):
        card = patch_card({**record, "base_model": {"source": "models/mine", "revision": revision}}, metrics)
        assert said in card
        assert ("models/mine" in card) == (revision is not None)


def test_local_paths_of_a_record_keep_their_last_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, prompt = "timm:local-dir:/data/jane/judge", "half a cat/dog, a/b/c"
    told = {"output": "~/secret/run", "model": "owner/name", "classifier": judge, "forget_prompts": [prompt], "anchor": None}
    run = tmp_path / "project" / "runs" / "cat"
    public = {"output": "run", "model": "owner/name", "classifier": "timm:local-dir:judge", "forget_prompts": [prompt]}
    assert public_record({"command": ["x"], "config": told}, run) == {"config": {**public, "anchor": None}}
    (tmp_path / "project" / "owner" / "name").mkdir(parents=True)
    assert public_record({"config": told}, run)["config"]["model"] == "name"  # where the run was started
    elsewhere = tmp_path / "elsewhere" / "cat"
    assert public_record({"config": told}, elsewhere)["config"]["model"] == "owner/name"
    monkeypatch.chdir(tmp_path / "project")
    assert public_record({"config": told}, elsewhere)["config"]["model"] == "name"  # here
    assert public_record({"config": {"retain": "data/sets/faces"}}, elsewhere) == {"config": {"retain": "faces"}}
