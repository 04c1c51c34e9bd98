"""`semu evaluate --lora | --edited`: the edits of others by the same questions, seeds and judges as a patch."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import built
from patches import random_patch, weight_bytes
from safetensors.torch import save_file
from saved_models import QUICK, saved_judge, saved_model
from text_models import FAMILIES, WORDS, tiny_pipeline
from tiny_models import tiny_model

from semu_diffusion.errors import InputError
from semu_diffusion.eval.results import Evaluation, Scores, SideEffects
from semu_diffusion.models.families import adapt_text_pipeline
from semu_diffusion.patches.lora import DIFFUSERS_LORA, KOHYA_LORA, save_lora, save_peft_folder
from semu_diffusion.pipelines.cli.commands.erase_class import main as erase_class
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.patches.published import checkpoint_edit, lora_edit
from semu_diffusion.pipelines.train.captions import cifar_vocabulary

Capture = pytest.CaptureFixture[str]
FEW = ("--images-per-prompt", "2", "--sampling-steps", "2", "--no-revival", "--unconditional-samples", "2", "--probes", "none")
PROMPTS = ["a photo of a cat", "a photo of a dog"]
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion on disk, with a vocabulary and a judge."""
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline().save_pretrained(folder / "sd")
    judge = saved_judge(folder / "judge", names=WORDS)
    dataclasses.replace(cifar_vocabulary(WORDS), judges={"object": judge}).save(folder / "sd")
    return folder / "sd"


def leco(unet: Any, rank: int = 2, alpha: float = 1.0, seed: int = 0) -> dict[str, torch.Tensor]:
    """What LECO saves after training all linear layers of cross- and self-attention, in its names and half precision."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and (".attn1." in name or ".attn2." in name):
            key = "lora_unet_" + name.replace(".", "_")
            found[f"{key}.lora_down.weight"] = torch.randn(rank, module.in_features, generator=generator).half()
            found[f"{key}.lora_up.weight"] = torch.randn(module.out_features, rank, generator=generator).half() * 0.3
            found[f"{key}.alpha"] = torch.tensor(alpha)
    return found


def same_numbers(one: Evaluation, other: Evaluation) -> None:
    """The same verdicts, and distances that float error alone tells apart."""
    assert one.before == other.before
    exact = [field.name for field in dataclasses.fields(Scores) if field.name != "clip_score"]
    assert {name: getattr(one.after, name) for name in exact} == {name: getattr(other.after, name) for name in exact}
    for effect in ("side_effects", "forget_effect", "held_out_effect", "unprompted_effect"):
        pair = [getattr(found, effect) for found in (one, other)]
        assert all(isinstance(found, SideEffects) for found in pair)
        assert pair[0].paired == pytest.approx(pair[1].paired, abs=2e-3)


def scored(folder: Path) -> Evaluation:
    return Evaluation.from_json(json.loads((folder / "metrics.json").read_text()))


def answer(model: Any, row: int = 0) -> torch.Tensor:
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = model.predict(x, torch.tensor([10, 60]), torch.tensor([row, 1]))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("file", [DIFFUSERS_LORA, KOHYA_LORA])
def test_our_own_lora_read_as_anyones_is_the_patch(tmp_path: Path, family: str, file: str) -> None:
    pipeline = tiny_pipeline(family)
    patch = random_patch(pipeline.unet, size=0.3).scale(0.5)
    patch = dataclasses.replace(patch, metadata={"layers_per_block": 1})
    save_lora(patch, tmp_path, {"sd15": "sd1", "sd21": "sd2"}.get(family, family))
    model = adapt_text_pipeline(pipeline, PROMPTS)
    before, original = weight_bytes(pipeline.unet), answer(model)
    with patch.applied(model):
        wanted = answer(model)
    edit = lora_edit(model, tmp_path / file)
    with edit.applied(model) as edited:
        assert torch.allclose(answer(edited), wanted, atol=1e-5)
        assert not torch.allclose(original, wanted, atol=1e-3)
    assert len(edit.layers) == len(patch.layers)
    assert weight_bytes(pipeline.unet) == before


def test_a_peft_folder_of_a_ddpm_is_what_peft_makes_of_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model()
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["to_q", "conv1", "to_out.0"], alpha_pattern={"conv1": 1}, rank_pattern={"to_q": 3},
        init_lora_weights=False,
    )  # fmt: skip
    wrapped = peft.PeftModel(tiny_model().denoiser, config)
    wrapped.save_pretrained(tmp_path / "lora")
    merged = dataclasses.replace(model, pipeline=tiny_model().pipeline)
    merged.pipeline.unet = wrapped.merge_and_unload()
    before, wanted = weight_bytes(model.denoiser), answer(merged)
    with lora_edit(model, tmp_path / "lora").applied(model) as edited:
        assert torch.allclose(answer(edited), wanted, atol=1e-5)
        assert weight_bytes(model.denoiser) != before
    assert weight_bytes(model.denoiser) == before
    with lora_edit(model, tmp_path / "lora", strength=0.0).applied(model):
        assert weight_bytes(model.denoiser) == before


@pytest.mark.parametrize("named", [
    lambda part, name: f"{'lora_te' if part else 'lora_unet'}_{name.replace('.', '_')}.lora_{{}}.weight",
    lambda part, name: f"{'text_encoder' if part else 'unet'}.{name}.lora_{{}}.weight",
    lambda part, name: f"{'text_encoder' if part else 'unet'}.{name}.lora.{{}}.weight",
    lambda part, name: f"{'text_encoder' if part else 'unet'}.{name}.lora_linear_layer.{{}}.weight",
    lambda part, name: f"text_encoder.{name}.lora.{{}}.weight" if part else f"base_model.model.{name}.lora_{{}}.default.weight",
])  # fmt: skip
def test_a_lora_by_any_name_edits_unet_and_text_encoder_and_both_come_off(tmp_path: Path, named: Callable[..., str]) -> None:
    pipeline = tiny_pipeline()
    model = adapt_text_pipeline(pipeline, PROMPTS)
    encoder = pipeline.text_encoder
    spoken = next(name for name, _ in encoder.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    layers = {(False, LAYER): pipeline.unet.get_submodule(LAYER), (True, spoken): encoder.get_submodule(spoken)}
    tensors = {}
    for number, ((part, name), layer) in enumerate(layers.items()):
        factors = leco_factors(layer, number)
        roles = ("A", "B") if "_{}" in named(part, name) and "lora_te" not in named(part, name) else ("down", "up")
        roles = roles if "lora_unet" not in named(part, name) else ("down", "up")
        tensors |= {named(part, name).format(role): factor for role, factor in zip(roles, factors, strict=True)}
    save_file(tensors, tmp_path / "lora.safetensors")
    before = weight_bytes(pipeline.unet) | weight_bytes(encoder)
    table, edit = model.table.embeddings.clone(), lora_edit(model, tmp_path / "lora.safetensors")
    expected = {}
    for number, (place, layer) in enumerate(layers.items()):
        down, up = leco_factors(layer, number)
        expected[place] = layer.weight.detach() + up @ down
    with edit.applied(model) as edited:
        for place, layer in layers.items():
            assert torch.allclose(layer.weight, expected[place], atol=1e-6)
        assert not torch.allclose(edited.table.embeddings, table, atol=1e-4)  # the words mean something else now
        assert edited.table.prompts == model.table.prompts
    assert weight_bytes(pipeline.unet) | weight_bytes(encoder) == before
    assert torch.equal(model.table.embeddings, table)


def test_the_t5_of_a_flux_is_the_third_encoder_of_sd_scripts(tmp_path: Path) -> None:
    pipeline = built("flux")
    model = adapt_text_pipeline(pipeline, PROMPTS)
    encoder = pipeline.text_encoder_2
    spoken = next(name for name, _ in encoder.named_modules() if name.endswith("SelfAttention.q"))
    down, up = leco_factors(encoder.get_submodule(spoken), 0)
    found = []
    for number in (2, 3):
        key = f"lora_te{number}_{spoken.replace('.', '_')}"
        save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, tmp_path / f"{number}.safetensors")
        with lora_edit(model, tmp_path / f"{number}.safetensors").applied(model):
            found.append(weight_bytes(encoder))
    assert found[0] == found[1] != weight_bytes(encoder)


def leco_factors(layer: torch.nn.Linear, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, layer.in_features, generator=generator), torch.randn(layer.out_features, 2, generator=generator)


def test_alpha_over_rank_is_the_scale_of_a_leco(tmp_path: Path) -> None:
    model = adapt_text_pipeline(tiny_pipeline(), PROMPTS)
    tensors = leco(model.denoiser, rank=4, alpha=2.0)
    torch.save(tensors, tmp_path / "slider.pt")  # Concept Sliders are published so
    weight = model.denoiser.get_submodule(LAYER).weight
    down, up = (tensors[f"{KEY}.lora_{role}.weight"].float() for role in ("down", "up"))
    wanted = weight.detach() + 0.5 * up @ down
    with lora_edit(model, tmp_path / "slider.pt").applied(model):
        assert torch.allclose(weight, wanted, atol=1e-6)


def test_a_leco_made_by_other_code_is_scored_by_the_command(tmp_path: Path, text_model: Path, capsys: Capture) -> None:
    save_file(leco(tiny_pipeline().unet), tmp_path / "no-cat.safetensors")
    given = ["--lora", str(tmp_path / "no-cat.safetensors"), "--model", str(text_model), "--concept", "cats"]
    assert semu(["evaluate", *given, *FEW[:-2], "--output", str(tmp_path / "run")]) == 0
    assert "sees cats (erased)" in capsys.readouterr().out
    found, record = scored(tmp_path / "run"), json.loads((tmp_path / "run" / "run.json").read_text())
    assert found.erased == ("cats",)
    assert found.after.paraphrase_accuracy is not None
    assert "completion" in found.after.probes
    assert found.side_effects is not None
    assert found.side_effects.paired["mse"] > 0
    assert found.patch is not None
    assert (found.patch.layers, found.patch.bytes) == (32, (tmp_path / "no-cat.safetensors").stat().st_size)
    assert record["lora"] == str(tmp_path / "no-cat.safetensors")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Use it" not in page  # the lines would load a patch that is not there
    assert semu(["report", str(tmp_path / "run"), "--output", str(tmp_path / "again.html")]) == 0


def test_a_lora_and_a_merged_model_score_as_the_patch_they_are_of(tmp_path: Path, text_model: Path) -> None:
    from semu_diffusion.pipelines.cli.commands.erase_concept import main as erase_concept

    few = ["--steps", "2", "--forget-samples", "4", "--kept-samples", "4", "--lr", "0.3", *FEW]
    assert erase_concept(["cat", "--model", str(text_model), "--anchor", "dog", *few, "--output", str(tmp_path / "cat")]) == 0
    assert semu(["export", str(tmp_path / "cat"), "--merged", str(tmp_path / "merged")]) == 0
    wanted = scored(tmp_path / "cat")
    assert wanted.side_effects is not None
    assert wanted.side_effects.paired["mse"] > 1e-6
    shared = ["--model", str(text_model), "--forget", "cat", *FEW]
    for flag, edit in (("--lora", "cat/lora"), ("--edited", "merged")):
        assert semu(["evaluate", flag, str(tmp_path / edit), *shared, "--output", str(tmp_path / f"run{flag}")]) == 0
        same_numbers(scored(tmp_path / f"run{flag}"), wanted)


def test_the_edits_of_classes_score_as_the_patch(tmp_path: Path) -> None:
    model, judge = saved_model(tmp_path / "model"), saved_judge(tmp_path / "judge")
    few = ["--classifier", judge, *QUICK]
    assert erase_class(["red", "--model", model, *few, "--lr", "0.3", "--output", str(tmp_path / "red")]) == 0
    assert semu(["merge", str(tmp_path / "red"), "--output", str(tmp_path / "merged")]) == 0
    few = ["--classifier", judge, "--images-per-class", "2", "--sampling-steps", "2", "--model", model, "--forget", "red"]
    for flag, edit in (("--lora", "red/lora"), ("--edited", "merged")):
        assert semu(["evaluate", flag, str(tmp_path / edit), *few, "--output", str(tmp_path / f"run{flag}")]) == 0
        found, wanted = scored(tmp_path / f"run{flag}"), scored(tmp_path / "red")
        assert found.after == wanted.after
        assert (found.side_effects, wanted.side_effects) != (None, None)
        assert found.side_effects.paired == pytest.approx(wanted.side_effects.paired, abs=1e-3)  # type: ignore[union-attr]


def test_half_an_edited_model_is_half_way_there_and_all_of_it_comes_off() -> None:
    model, other = tiny_model(), tiny_model(seed=1)
    before, old, new = weight_bytes(model.denoiser), copy.deepcopy(model.denoiser.state_dict()), other.denoiser.state_dict()
    for strength, wanted in ((1.0, new), (0.5, {name: (value + new[name]) / 2 for name, value in old.items()})):
        with checkpoint_edit(model, other.pipeline, "other", strength).applied(model) as edited:
            assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in edited.denoiser.state_dict().items())
        assert weight_bytes(model.denoiser) == before


def broken(change: str) -> dict[str, torch.Tensor]:
    tensors = {key: value for key, value in leco(tiny_pipeline().unet).items() if key.startswith(KEY)}
    down, up = tensors[f"{KEY}.lora_down.weight"], tensors[f"{KEY}.lora_up.weight"]
    other = KEY.replace("attn2_to_k", "attn3_to_k")
    return {
        "nothing": {},
        "no layer": {key.replace(KEY, other): value for key, value in tensors.items()},
        "shape": {**tensors, f"{KEY}.lora_down.weight": torch.zeros(2, 5)},
        "alpha": {**tensors, f"{KEY}.alpha": torch.ones(2)},
        "empty": {**tensors, f"{KEY}.lora_down.weight": down[:0].clone(), f"{KEY}.lora_up.weight": up[:, :0].clone()},
        "rank": {**tensors, f"{KEY}.lora_up.weight": torch.zeros(len(up), 3)},
        "not finite": {**tensors, f"{KEY}.lora_up.weight": up * float("nan")},
        "half": {f"{KEY}.lora_down.weight": down},
        "DoRA": {**tensors, f"{KEY}.dora_scale": torch.ones(1, down.shape[1])},
        "LoHa": {f"{KEY}.hada_w1_a": up, f"{KEY}.hada_w1_b": down},
        "LoKr": {f"{KEY}.lokr_w1": up},
        "difference": {f"{KEY}.diff": up},
        "twice": {**tensors, f"unet.{LAYER}.lora_A.weight": down.clone(), f"unet.{LAYER}.lora_B.weight": up.clone()},
        "model": {"model.diffusion_model.input_blocks.0.0.weight": up},
        "text": {f"lora_te2_{LAYER}.lora_down.weight": down, f"lora_te2_{LAYER}.lora_up.weight": up},
    }[change]


@pytest.mark.parametrize(("change", "said"), [
    ("nothing", "holds no tensor"),
    ("no layer", "1 of its 1 layers are none of the model's, as lora_unet_down_blocks_1_attentions_0"),
    ("shape", "do not fit the layer's (16, 16)"),
    ("rank", "do not fit the layer's (16, 16)"),
    ("empty", "do not fit the layer's (16, 16)"),
    ("alpha", "what it says of alpha at lora_unet_down_blocks_1_attentions_0"),
    ("not finite", "lora_up.weight holds other than finite numbers"),
    ("half", "has no up, so it makes no update"),
    ("DoRA", "it is a DoRA"),
    ("LoHa", "it is a LoHa"),
    ("LoKr", "it is a LoKr"),
    ("difference", "it is a difference of whole weights"),
    ("twice", f"two of its layers are {LAYER}"),
    ("model", "--edited takes a whole model"),
    ("text", "are none of the model's"),
])  # fmt: skip
def test_a_file_that_is_no_lora_of_the_model_is_refused_in_one_line(
    tmp_path: Path, text_model: Path, capsys: Capture, change: str, said: str
) -> None:
    save_file(broken(change), tmp_path / "lora.safetensors")
    given = ["--lora", str(tmp_path / "lora.safetensors"), "--model", str(text_model), "--forget", "cat"]
    refused(capsys, said, semu(["evaluate", *given, *FEW, "--output", str(tmp_path / "no")]))
    assert not (tmp_path / "no").exists()


def refused(capsys: Capture, said: str, code: int) -> None:
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_words_that_contradict_each_other_are_refused(tmp_path: Path, text_model: Path, capsys: Capture) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    model, lora = ["--model", str(text_model)], ["--lora", str(tmp_path / "text.safetensors")]
    for flags, said in (
        ([], "name a patch, or another's edit"),
        (["runs/cat", *lora], "PATCH and --lora are edits each"),
        (["runs/cat", "--forget", "cat"], "a patch says itself what it erased"),
        (lora, "does not say what was erased"),
        ([*lora, "--forget", "cat"], "say which model the edit is of with --model: ddpm-cifar10, tiny-sd"),
        ([*lora, *model, "--forget", "cat"], "is not readable as a file of tensors"),
        (["--lora", str(tmp_path), *model, "--forget", "cat"], "the folder has no pytorch_lora_weights.safetensors or adapter"),
    ):
        refused(capsys, said, semu(["evaluate", *flags, *FEW, "--output", str(tmp_path / "no")]))


def test_a_patch_given_as_a_lora_is_said(tmp_path: Path, text_model: Path, capsys: Capture) -> None:
    patch = random_patch(tiny_pipeline().unet).save(tmp_path / "patch.safetensors")
    refused(
        capsys,
        "is a patch of this program",
        semu(["evaluate", "--lora", str(patch), "--model", str(text_model), "--forget", "cat"]),
    )


def test_a_run_folder_a_model_and_a_lora_in_each_others_place_are_answered_with_what_to_give(
    tmp_path: Path, text_model: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    patch = random_patch(tiny_pipeline().unet, rank=1)
    patch.save(run / "patch.safetensors")
    save_lora(patch, run / "lora", "sd1")
    (tmp_path / "unnamed").mkdir()
    lora = tmp_path / "unnamed" / "style.safetensors"
    save_file(leco(tiny_pipeline().unet), lora)
    model = ["--model", str(text_model), "--forget", "cat"]
    for arguments, said in (
        (
            ["--lora", str(run), *model],
            f"is a run folder of this program: semu evaluate {run} scores its patch, or --lora {run}/lora",
        ),
        (["--lora", str(lora.parent), *model], f"name the file, as {lora}"),
        (["--edited", str(run), *model], f"it is a run of this program: semu evaluate {run} scores its patch"),
        (["--edited", str(run / "lora"), *model], "it holds a LoRA"),
        ([str(text_model)], f"is a model, no patch: semu evaluate --edited {text_model}"),
        ([str(run / "lora")], f"is a LoRA, no patch: semu evaluate --lora {run}/lora"),
        ([str(lora)], f"semu evaluate --lora {lora} scores a LoRA"),
    ):
        refused(capsys, said, semu(["evaluate", *arguments, "--output", str(tmp_path / "no")]))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "alpha", [torch.tensor(1), torch.tensor([1.0]), torch.tensor(1.0).bfloat16(), torch.tensor(1.0).double()]
)
@pytest.mark.parametrize("key", [KEY, KEY.replace("lora_unet", "lycoris")])
def test_an_alpha_of_any_kind_of_number_is_the_same_scale(tmp_path: Path, alpha: torch.Tensor, key: str) -> None:
    pipeline = tiny_pipeline()
    tensors = {name: value for name, value in leco(pipeline.unet).items() if name.startswith(KEY)}
    up, down = (tensors[f"{KEY}.lora_{which}.weight"].float() for which in ("up", "down"))
    file = {name.replace(KEY, key): value for name, value in {**tensors, f"{KEY}.alpha": alpha}.items()}
    save_file(file, tmp_path / "lora.safetensors")
    edit = lora_edit(adapt_text_pipeline(pipeline, PROMPTS), tmp_path / "lora.safetensors")
    assert torch.allclose(edit.parts["unet"].delta(LAYER), up @ down / 2)  # type: ignore[attr-defined]


def test_a_model_saved_in_half_precision_is_no_edit_but_what_was_edited_in_it_is() -> None:
    model, other = tiny_model(), tiny_model()
    other.denoiser.half().float()
    with pytest.raises(InputError, match="has the very weights of the model"):
        checkpoint_edit(model, other.pipeline, "other")
    other.denoiser.conv_in.weight.data += 0.1
    for strength in (float("nan"), float("inf"), 1e39):
        with pytest.raises(InputError, match="would no longer be finite numbers"):
            checkpoint_edit(model, other.pipeline, "other", strength)
    assert checkpoint_edit(model, other.pipeline, "other").layers == ("unet.conv_in",)


def test_dora_and_other_tuners_of_peft_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    save_peft_folder(random_patch(model.denoiser), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, said in (
        ({"use_dora": True}, "of the kind DoRA"),
        ({"peft_type": "LOHA"}, "of the kind LOHA"),
        ({"alpha_pattern": {"(": 1}}, "what it says of alpha"),
        ({"lora_alpha": "many", "alpha_pattern": {}}, "what it says of alpha"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=said):
            lora_edit(model, tmp_path)


def test_an_edited_model_of_another_architecture_is_refused(tmp_path: Path, text_model: Path, capsys: Capture) -> None:
    wide, lost = tiny_model(block_out_channels=(8, 24)), tiny_model()
    lost.denoiser.conv_in.weight.data[0, 0, 0, 0] = float("inf")
    for other, said in (
        (wide, "is of another architecture: its unet."),
        (lost, "unet.conv_in.weight holds other than finite numbers"),
        (tiny_model(), "has the very weights of the model"),
    ):
        with pytest.raises(InputError, match=said):
            checkpoint_edit(tiny_model(), other.pipeline, "other")
    tiny_pipeline("sd21").save_pretrained(tmp_path / "other")
    for other, said in (
        (tmp_path / "other", "is another kind of model: it predicts v_prediction"),
        (tmp_path / "none", "no such"),
    ):
        given = ["--edited", str(other), "--model", str(text_model), "--forget", "cat"]
        refused(capsys, said, semu(["evaluate", *given, "--output", str(tmp_path / "no")]))
    assert not (tmp_path / "no").exists()


def test_a_grid_of_anothers_edit_is_drawn(tmp_path: Path, text_model: Path, capsys: Capture) -> None:
    save_file(leco(tiny_pipeline().unet), tmp_path / "lora.safetensors")
    given = ["--lora", str(tmp_path / "lora.safetensors"), "--model", str(text_model), "--forget", "cat", "--images", "1"]
    assert semu(["grid", *given, "--sampling-steps", "2", "--output", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").is_file()
