"""``semu benchmark-cost``: networks of the published sizes, phases measured beside a reference that does what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from semu_diffusion.erase.meter import Meter
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.erasure import train_patch
from semu_diffusion.errors import InputError
from semu_diffusion.gradients import collect_gradients
from semu_diffusion.layers import select_layers
from semu_diffusion.pipelines.cli.main import main
from semu_diffusion.pipelines.cost import phases, run, shapes, spectra
from semu_diffusion.pipelines.cost.config import CostConfig
from semu_diffusion.pipelines.cost.gauge import CLEAR, Gauge, Reading
from semu_diffusion.pipelines.cost.reference import collect_dense, train_rebuilt
from semu_diffusion.pipelines.cost.report import table
from semu_diffusion.pipelines.cost.shapes import SHAPES, empty_network

MILLIONS = {"sd15": 859.5, "sd21": 865.9, "sdxl": 2567.5, "sd35-medium": 2243.2, "flux-dev": 11901.4, "dit-xl2": 674.9}
SMALL: dict[str, dict[str, Any]] = {  # the same settings, of narrow layers
    "sd15": {"block_out_channels": (32,) * 4, "layers_per_block": 1, "cross_attention_dim": 16},
    "sd21": {
        "block_out_channels": (32,) * 4, "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": (2,) * 4,
    },
    "sdxl": {
        "block_out_channels": (32,) * 3, "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": (2,) * 3,
        "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 44, "transformer_layers_per_block": (1, 2, 2),
    },
    "sd35-medium": {
        "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16,
        "caption_projection_dim": 16, "pooled_projection_dim": 20, "dual_attention_layers": (0, 1),
    },
    "flux-dev": {
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
        "pooled_projection_dim": 20, "axes_dims_rope": (4, 6, 6),
    },
    "dit-xl2": {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8},
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, changes in SMALL.items():
        shape = SHAPES[name]
        text = (5, 16) if shape.text[0] else shape.text
        shrunk = replace(shape, config={**shape.config, **changes}, text=text, pooled=20 if shape.pooled else 0)
        monkeypatch.setitem(shapes.SHAPES, name, shrunk)


def measured(**settings: Any) -> dict[str, Any]:
    (record,) = run.measure(CostConfig(**{"steps": 1, "device": "cpu", "size": 64, **settings}))
    return record


@pytest.mark.parametrize("name", SHAPES)
def test_the_networks_have_the_parameters_of_the_published_ones(name: str) -> None:
    network = empty_network(SHAPES[name])
    count = sum(parameter.numel() for parameter in network.parameters())
    if name == "dit-xl2":  # diffusers keeps a copy of the embedders in every block, the paper counts one
        blocks = network.transformer_blocks
        count -= (len(blocks) - 1) * sum(parameter.numel() for parameter in blocks[0].norm1.emb.parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.1)
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_goes_through_every_phase(name: str) -> None:
    record = measured(shape=name, batch_size=2, weights="bf16", gradient_checkpointing=True, memory="1GB")
    found = {phase["phase"]: phase for phase in record["phases"]}
    named = name in ("sd15", "sd21", "sdxl", "dit-xl2")  # the others have no layers for a closed form
    assert set(found) == {"collect", "moments", "subspace", "train", *(["closed-form"] if named else [])}
    assert record["weights"] == "bfloat16"
    share = found["train"]["target_share"]
    assert [found[phase]["passes"] for phase in ("collect", "train", "moments")] == [6, 6 + 2 * share, 1]
    ours = found["train"]["without_target_seconds"] + share * found["train"]["target_seconds"]
    assert found["train"]["ours"]["seconds"] == pytest.approx(ours)
    for phase in ("collect", "subspace", "train"):
        assert found[phase]["seconds_ratio"] == found[phase]["ours"]["seconds"] / found[phase]["reference"]["seconds"]
    assert found["subspace"]["energy"] > 0.99
    assert record["seconds_per_1000_passes"] == pytest.approx(1000 * ours / (6 + 2 * share))
    assert "~" not in table(record)


@pytest.mark.usefixtures("small")
def test_the_reference_asks_for_a_target_in_every_step_and_ours_pays_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SEMU's own code does, of the patched network: a forward pass more for each image."""
    counted = []

    def reference(denoiser: Any, layers: Any, spaces: Any, steps: int, loss: Callable[[int], torch.Tensor]) -> None:
        with Meter(denoiser) as meter:
            train_rebuilt(denoiser, layers, spaces, steps, loss)
        counted.append(sum(meter.passes.values()))

    monkeypatch.setattr(phases, "train_rebuilt", reference)
    (train,) = measured(shape="sd15", phase=("train",), steps=2, batch_size=3)["phases"]
    assert counted == [2 * 3 * (3 + 1)]
    assert train["passes"] == pytest.approx(3 * (3 + train["target_share"]))


def test_the_share_of_targets_is_what_an_erasure_asks() -> None:
    model = tiny_model()
    settings = phases.replace(run.ClassErasureConfig(forget=("red",)), forget_samples=6, kept_samples=6, adversarial=0.0)
    task = run.classes.task(model, run.classes.plan(model, settings), settings)
    passes = run_to_end(run_erasure(task, settings)).passes["train"]
    images = 2 * settings.steps * settings.batch_size
    asked = images * phases.targets_asked(settings)
    assert asked > 10
    assert passes - 3 * images == pytest.approx(asked, abs=3 * asked**0.5)


@pytest.mark.usefixtures("small")
def test_what_is_collected_in_rounds_is_measured_in_rounds() -> None:
    (collect,) = measured(shape="sd15", phase=("collect",), memory="300kB", steps=2, batch_size=2)["phases"]
    assert collect["rounds"] > 1
    assert collect["passes"] == 3 * 2 * collect["rounds"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["sdxl", "sd35-medium", "flux-dev"])
def test_what_was_measured_on_a_part_is_extrapolated_and_marked(name: str) -> None:
    record = measured(shape=name, blocks=1, phase=("collect", "subspace"))
    collect, subspace = record["phases"]
    share = record["share"]
    assert 0 < share["flops"] < 1
    assert 0 < share["parameters"] < 1
    for side in ("ours", "reference"):
        whole, part = collect["extrapolated"][side], collect[side]
        assert whole["seconds"] == pytest.approx(part["seconds"] / share["flops"])
        if part["peak"] is not None:
            beyond = part["peak"] - record["weight_bytes"] * share["parameters"]
            assert whole["peak"] == pytest.approx(record["weight_bytes"] + beyond / share["parameters"], rel=1e-3, abs=1e4)
    assert "extrapolated" not in subspace  # the matrices are those of the whole network
    first = next(line for line in table(record).splitlines() if line.startswith("collect"))
    assert first.count("~") >= 3
    assert "extrapolated from 1 blocks" in table(record)
    everything = measured(shape=name, blocks=99, phase=("collect",))
    assert everything["share"] == {"flops": 1.0, "parameters": 1.0}


def layers_and_loss() -> tuple[Any, dict[str, Any], Callable[[int], torch.Tensor]]:
    model = tiny_model()
    x, t = torch.randn(3, 2, 3, 8, 8), torch.tensor([3, 50])

    def loss(step: int) -> torch.Tensor:
        return model.predict(x[step % 3], t, torch.tensor([0, 1])).square().mean()

    return model.denoiser, select_layers(model.denoiser, ("attention", "conv")), loss


def test_the_references_gradients_are_ours_all_of_them_at_once() -> None:
    denoiser, layers, loss = layers_and_loss()
    theirs = collect_dense(denoiser, layers, 3, loss)
    ours = collect_gradients(denoiser, layers, range(3), loss)
    assert theirs.keys() == ours.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name] / 3, gradient, rtol=1e-4, atol=1e-7)


def test_the_references_training_sees_the_same_patched_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of its steps are those of ours, but for our factors' int8; afterwards the network is as it was."""
    denoiser, layers, loss = layers_and_loss()
    generator = torch.Generator().manual_seed(0)
    spaces = {name: phases._random_space(layer.weight, generator) for name, layer in layers.items()}
    seen: dict[str, list[float]] = {"ours": [], "reference": []}

    def heard(side: str, step: int) -> torch.Tensor:
        value = loss(0)
        seen[side].append(float(value.detach()))
        return value

    train_rebuilt(denoiser, layers, spaces, 4, lambda step: heard("reference", step))
    patched = phases.PatchedLayers(denoiser, spaces)
    steps = train_patch(patched, lambda step: {"forget": heard("ours", step)}, 4, 1e-3, clip=None)
    run_to_end(steps)
    assert seen["reference"][0] == pytest.approx(float(loss(0).detach()))
    assert seen["reference"][3] < seen["reference"][0]
    drop = seen["ours"][0] - seen["ours"][3]
    assert seen["reference"][0] - seen["reference"][3] == pytest.approx(drop, rel=0.05)
    assert not any("forward" in layer.__dict__ for layer in layers.values())


def test_large_matrices_are_extrapolated_once_the_time_is_spent() -> None:
    gauge, made = Gauge(torch.device("cpu")), []

    def matrices(side: int, count: int) -> spectra.Matrices:
        def gradient() -> torch.Tensor:
            made.append(side)
            return spectra.synthetic(side, 2 * side, torch.device("cpu"), 0)

        return spectra.Matrices((side, 2 * side), count, gradient)

    groups = [matrices(400, 7), matrices(50, 3)]
    costs = spectra.svd_costs(groups, 0.95, 8, gauge, 1e-9, True)
    assert (made, costs.extrapolated) == ([50], 7)
    assert costs.reference is not None
    measured_seconds = costs.reference.seconds / (3 + 7 * (400 / 50) ** 3)
    assert 0 < measured_seconds < 1
    costs = spectra.svd_costs(groups, 0.95, 8, gauge, 60.0, True)
    assert (made, costs.extrapolated) == ([50, 50, 400], 0)
    assert costs.angle is not None
    assert costs.angle < 1e-3
    assert spectra.svd_costs(groups, 0.95, 8, gauge, 60.0, False).reference is None


@pytest.mark.skipif(not CLEAR.exists(), reason="resident memory is measured on Linux")
def test_the_peak_is_of_this_work_alone() -> None:
    gauge = Gauge(torch.device("cpu"))
    large, _ = gauge(lambda: torch.ones(50_000_000).sum())
    small, _ = gauge(lambda: torch.ones(5_000_000).sum())
    assert large.peak is not None
    assert small.peak is not None
    assert large.peak >= 190_000_000
    assert small.peak < 100_000_000
    assert isinstance(small, Reading)


def test_the_command_measures_the_embedded_models_and_prints_one_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["benchmark-cost", "--steps", "1", "--phase", "collect,train", "--no-reference", "--device", "cpu", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)["measured"]
    assert [one["shape"] for one in found] == ["tiny, classes", "tiny, concepts"]
    for one in found:
        assert [phase["passes"] for phase in one["phases"]] == [3, pytest.approx(3.15, abs=0.01)]
        assert all(phase["reference"] is None for phase in one["phases"])
        assert "1,000 image passes" in table(one)


def test_a_whole_erasure_is_counted_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(**given: Any) -> Any:
        return kept(**{**given, "forget": ("red",), "forget_samples": 2, "kept_samples": 2, "steps": 1, "batch_size": 2})

    kept = run.ClassErasureConfig
    monkeypatch.setattr(run, "ClassErasureConfig", settings)
    monkeypatch.setattr(run, "load_model", lambda _: tiny_model(names=("red", "green", "blue", "grey"), num_class_embeds=5))
    record = run._of_classes(CostConfig(phase=("erase",), device="cpu"), torch.device("cpu"))
    erase = record["erase"]
    assert erase["passes"] == sum(erase["passes_by_stage"].values()) > 0
    assert erase["passes_by_stage"].keys() == erase["seconds_by_stage"].keys() == {"collect", "subspace", "train"}
    assert f"{erase['passes']:,} image passes" in table(record)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"phase": ("colect",)}, "choose from"), ({"shape": "sd15", "phase": ("erase",)}, "--shape tiny"), ({"blocks": 1}, "tiny"),
     ({"shape": "sd15", "size": 100}, "multiple of 64"), ({"steps": 0}, "at least 1"), ({"memory": "much"}, "--memory")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        CostConfig(**settings)
    assert "\n" not in str(caught.value)
