"""The peers: each does what the defining equation of its paper says."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import weight_bytes
from test_methods import class_task, concept_task
from tiny_models import tiny_model
from torch import nn

from semu_diffusion.erase.closed_form import update
from semu_diffusion.erase.phases import image_seeds, phase_generator
from semu_diffusion.erase.run import gather
from semu_diffusion.erase.samples import forget_batches, self_made
from semu_diffusion.errors import InputError
from semu_diffusion.layers import select_layers
from semu_diffusion.objectives import NoisyBatch
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.peers.closed_forms import NameInputs
from semu_diffusion.peers.concept_ablation import anchor_samples
from semu_diffusion.peers.edit import Substitution, WholeWeights, trained, with_gradient
from semu_diffusion.peers.erasediff import multiplier
from semu_diffusion.peers.fine_tuning import Setting, own_objective
from semu_diffusion.peers.leco import LowRank
from semu_diffusion.peers.methods import METHODS
from semu_diffusion.peers.rece import PRESERVE, adversarial_inputs, rounds
from semu_diffusion.peers.salun import forget_gradient, salient
from semu_diffusion.peers.sfr_on import adaptive, alternating, fisher
from semu_diffusion.peers.speed import constrained, free_basis, influential, solved
from semu_diffusion.peers.spm import anchored, anchoring, nearby


def make(name: str, domain: str, **settings: Any) -> tuple[Any, Any]:
    """The task and the settings of a method, shortened."""
    short = {key: value for key, value in METHODS[name].overrides.items() if key not in ("steps", "batch_size")}
    return class_task(**short, **settings) if domain == "class" else concept_task(**short, **settings)


def setting_of(task: Any, config: Any, trainable: Any = None) -> Setting:
    samples = gather(task, dataclasses.replace(config, protect="none"))
    return Setting(task, config, samples, trainable or WholeWeights(task.model.denoiser))


def mean_square(difference: torch.Tensor) -> float:
    return float(difference.float().square().mean())


# ---------------------------------------------------------------- what all of them rest on


def test_what_stands_in_for_a_shared_weight_is_seen_everywhere_and_goes_away_by_an_exception() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    x, before = torch.ones(1, 2), weight_bytes(net)
    weights = Substitution(net, ["0.weight"])
    old = net(x)
    with suppress(ZeroDivisionError), weights.put({"0.weight": torch.zeros(2, 2)}):
        assert not net(x).any()
        with weights.original():
            assert torch.equal(net(x), old)
        assert not net(x).any()
        raise ZeroDivisionError
    assert torch.equal(net(x), old)
    assert net[1].weight is net[0].weight
    assert weight_bytes(net) == before


def test_a_loss_that_knows_its_gradient_has_that_value_and_that_gradient() -> None:
    own, given = torch.randn(3, requires_grad=True), torch.randn(3)
    made = with_gradient(torch.tensor(7.0, requires_grad=True), [given], [own])
    assert float(made.detach()) == 7.0
    assert torch.equal(torch.autograd.grad(made, own)[0], given)


def test_the_passes_of_the_original_count_and_what_its_paths_know_is_not_asked_again() -> None:
    task, config = make("esd-u", "class")
    passes = METHODS["esd-u"].run(task, config, None).passes
    assert passes["train"] == 3 * config.steps * config.batch_size
    task, config = make("salun", "class")
    passes = METHODS["salun"].run(task, config, None).passes
    assert passes["train"] >= config.steps * config.batch_size * (3 + 3 + 1)  # both terms, and the moving target


@pytest.mark.parametrize("name", ["salun", "leco", "spm", "erasediff", "sfr-on"])
def test_the_same_settings_give_the_same_edit(name: str) -> None:
    task, config = make(name, "class")
    one, two = (METHODS[name].run(task, config, None).edit for _ in range(2))
    if name in ("leco", "spm"):
        assert one.same_as(two)
    else:
        assert all(torch.equal(one.values[key], two.values[key]) for key in one.values)


# ---------------------------------------------------------------- trained


@pytest.mark.parametrize("domain", ["class", "concept"])
def test_esd_answers_with_negative_guidance(domain: str) -> None:
    task, config = make("esd-u", domain)
    setting = setting_of(task, config)
    batch = setting.samples.forget.draw(config.batch_size, phase_generator(config.seed, "training")).batch
    with torch.no_grad():
        own, null = (
            task.model.predict(batch.x_t, batch.t, rows)
            for rows in (batch.condition, torch.full_like(batch.condition, task.model.null))
        )
        expected = mean_square(own - (null - 1.0 * (own - null)))
        found = own_objective(setting)(1)
    assert float(found["forget"]) == pytest.approx(expected, rel=1e-2)
    assert set(found) == {"forget"}


@pytest.mark.parametrize("domain", ["class", "concept"])
def test_gradient_ascent_maximises_the_error_of_denoising(domain: str) -> None:
    task, config = make("ascent", domain)
    setting = setting_of(task, config)
    batch = setting.samples.forget.draw(config.batch_size, phase_generator(config.seed, "training")).batch
    found = own_objective(setting)(1)
    with torch.no_grad():
        error = mean_square(task.model.predict(batch.x_t, batch.t, batch.condition) - batch.target)
    assert error > 0
    assert sum(float(one.detach()) for one in found.values()) == pytest.approx(-error, rel=1e-2)


@pytest.mark.parametrize("domain", ["class", "concept"])
def test_leco_is_trained_to_the_target_of_esd(domain: str) -> None:
    task, config = make("leco", domain)
    lora = LowRank(task.model.denoiser, select_layers(task.model.denoiser, config.layers), 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one in lora.up.values():
            one.normal_(generator=torch.Generator().manual_seed(1))
    setting = setting_of(task, config, lora)
    batch = setting.samples.forget.draw(config.batch_size, phase_generator(config.seed, "training")).batch
    nothing = torch.full_like(batch.condition, task.model.null)
    with torch.no_grad():
        own, null = (task.model.predict(batch.x_t, batch.t, rows) for rows in (batch.condition, nothing))
        with trained(lora):
            ours = task.model.predict(batch.x_t, batch.t, batch.condition).detach()
            found = own_objective(setting)(1)
    assert set(found) == {"forget"}
    assert float(found["forget"].detach()) == pytest.approx(mean_square(ours - (null - 1.0 * (own - null))), rel=1e-2)
    assert not torch.allclose(ours, own, atol=1e-2)  # the LoRA is seen


def test_esd_x_trains_cross_attention_and_esd_u_all_else() -> None:
    task, config = make("esd-x", "concept")
    every = {name for name, _ in task.model.denoiser.named_parameters()}
    x, u = (set(METHODS[name].run(task, config, None).edit.values) for name in ("esd-x", "esd-u"))
    assert x == {name for name in every if ".attn2." in name}
    assert u == every - x
    assert any(name.endswith(".bias") for name in x)  # whole blocks, not only their matrices


def test_what_a_model_has_not_is_said_in_one_line() -> None:
    task, config = make("esd-u", "class")
    with pytest.raises(InputError, match="cross-attention, and the network has none"):
        METHODS["esd-x"].run(task, config, None)
    nameless = dataclasses.replace(task, model=tiny_model(num_class_embeds=3))
    for name in ("esd-u", "leco", "spm"):
        with pytest.raises(InputError, match="no null class"):
            METHODS[name].run(nameless, config, None)
    for name in ("erasediff", "sfr-on"):
        with pytest.raises(InputError, match="--retain self"):
            METHODS[name].run(*make(name, "class")[:1], dataclasses.replace(make(name, "class")[1], retain="none"), None)
    with pytest.raises(InputError, match="--target fixed"):
        METHODS["rece"].run(task, config, None)


def test_salun_changes_the_half_of_the_numbers_with_the_largest_forget_gradient_and_no_other() -> None:
    task, config = make("salun", "class")
    setting = setting_of(task, config)
    gradient = forget_gradient(setting)
    batches = forget_batches(task.model, setting.samples.own, phase_generator(config.seed, "saliency"))
    for parameter in task.model.denoiser.parameters():
        parameter.grad = None
    for batch in batches:
        error = task.model.predict(batch.x_t, batch.t, batch.condition) - batch.target
        (error.square().flatten(1).mean(1).sum()).backward()
    for name, parameter in task.model.denoiser.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(gradient[name], wanted, atol=1e-5), name
        parameter.grad = None
    masks = salient(gradient)
    sizes = torch.cat([one.abs().flatten() for one in gradient.values()])
    inside = torch.cat([mask.flatten() for mask in masks.values()])
    assert inside.sum() == pytest.approx(len(sizes) / 2, abs=1)
    assert sizes[inside].min() >= sizes[~inside].max()
    edit = METHODS["salun"].run(task, config, None).edit
    assert edit.trained_parameters == int(inside.sum())
    own = dict(task.model.denoiser.named_parameters())
    assert all(torch.equal(edit.values[name][~mask], own[name][~mask]) for name, mask in masks.items())
    assert any(not torch.equal(edit.values[name], own[name]) for name in masks)


def test_salun_relabels_to_what_the_model_in_training_says_of_the_anchor() -> None:
    task, config = make("salun", "class")
    setting = setting_of(task, dataclasses.replace(config, retain="none"))
    moved = {name: copy + 0.05 * torch.randn_like(copy) for name, copy in setting.trainable.copies.items()}
    loss = own_objective(setting)
    batch = setting.samples.forget.draw(config.batch_size, phase_generator(config.seed, "training")).batch
    anchors = torch.full_like(batch.condition, setting.samples.anchors[task.forget[0]])
    with torch.no_grad(), setting.trainable.weights.put(moved):
        own, anchor = (task.model.predict(batch.x_t, batch.t, rows) for rows in (batch.condition, anchors))
        found = float(loss(1)["forget"])
    assert found == pytest.approx(mean_square(own - anchor), rel=1e-3)


def test_concept_ablation_answers_the_concept_as_the_anchor_on_pictures_of_the_anchor() -> None:
    task, config = make("concept-ablation", "concept")
    samples = anchor_samples(task, config)
    assert set(samples.own.labels.tolist()) <= set(task.forget)
    rows = [samples.anchors[row] for row in samples.own.labels.tolist()]
    seeds = image_seeds([task.model.names[row] for row in samples.own.labels.tolist()], config.seed, "anchor pictures")
    assert torch.equal(samples.own.images, self_made(task.model, rows, seeds, config.guidance_scale, config.precision).images)
    setting = Setting(task, config, samples, WholeWeights(task.model.denoiser))
    batch = samples.forget.draw(config.batch_size, phase_generator(config.seed, "training")).batch
    anchors = torch.tensor([samples.anchors[int(row)] for row in batch.condition])
    with torch.no_grad():
        own, anchor = (task.model.predict(batch.x_t, batch.t, rows) for rows in (batch.condition, anchors))
        found = own_objective(setting)(1)
    assert float(found["forget"]) == pytest.approx(mean_square(own - anchor), rel=1e-3)
    names = METHODS["concept-ablation"].run(task, config, None).edit.values
    assert names
    assert all(name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for name in names)


def test_leco_starts_as_nothing_and_its_patch_is_the_lora_as_trained(tmp_path: Path) -> None:
    task, config = make("leco", "concept")
    denoiser = task.model.denoiser
    layers = select_layers(denoiser, ("attention", "conv"))
    lora = LowRank(denoiser, layers, 4, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, lora.weights.own[name].float()) for name, value in lora.values().items())
    patch = METHODS["leco"].run(task, config, None).edit
    assert set(patch.layers) == set(layers)
    sides = [layer.weight.flatten(1).shape for layer in layers.values()]
    assert patch.trained_parameters == sum(min(4, m, n) * (m + n) for m, n in sides)
    assert max(int(layer.ranks.max()) for layer in patch.layers.values()) == 4
    again = ErasurePatch.load(patch.save(tmp_path / "leco.safetensors"))
    with torch.no_grad():
        for one in lora.up.values():
            one.normal_(generator=torch.Generator().manual_seed(1))
    made = lora.edit()
    for name, layer in layers.items():
        assert torch.equal(again.delta(name), patch.delta(name))
        made_of = lora.values()[f"{name}.weight"].detach() - layer.weight.detach()
        assert torch.allclose(made.delta(name), made_of, atol=1e-5)


def test_spm_draws_conditions_of_the_norm_of_the_concept_and_away_from_it() -> None:
    given = torch.tensor([[3.0, 4.0], [0.0, -2.0]]).repeat(4000, 1)
    drawn = nearby(given, torch.Generator().manual_seed(0))
    scale = drawn.norm(dim=1) / given.norm(dim=1)
    assert 0.8 <= float(scale.min()) < 0.81
    assert 1.19 < float(scale.max()) <= 1.2 + 1e-6
    cosine = torch.cosine_similarity(drawn, given)  # on the circle, of a density as min(1, 1 - cos)
    assert float(cosine.mean()) == pytest.approx(-(math.pi / 2) / (2 * math.pi - 2), abs=0.02)
    assert float((cosine > 0.9).float().mean()) < 0.01
    assert torch.equal(drawn, nearby(given, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("domain", ["class", "concept"])
def test_spm_erases_as_esd_and_holds_what_is_drawn(domain: str) -> None:
    task, config = make("spm", domain)
    lora = LowRank(task.model.denoiser, select_layers(task.model.denoiser), 1, torch.Generator().manual_seed(0))
    setting = setting_of(task, config, lora)
    with torch.no_grad():
        first = anchored(setting)(1)
    assert set(first) == {"forget", "anchoring"}
    assert float(first["anchoring"]) == 0.0
    assert float(first["forget"]) == pytest.approx(float(own_objective(setting)(1)["forget"].detach()))
    with torch.no_grad():
        for one in lora.up.values():
            one.normal_(generator=torch.Generator().manual_seed(1))
        batch = setting.samples.forget.draw(config.batch_size, (own := torch.Generator().manual_seed(5))).batch
        drawn = nearby(task.model.condition_vectors(batch.condition), own)
        old = task.model.predict(batch.x_t, batch.t, drawn)
        with trained(lora):
            expected = mean_square(task.model.predict(batch.x_t, batch.t, drawn) - old)
            found = anchoring(setting, torch.Generator().manual_seed(5))
    assert expected > 0
    assert float(found) == pytest.approx(1000 * expected, rel=1e-3)


def test_spm_is_a_patch_of_rank_one_on_every_layer() -> None:
    task, config = make("spm", "class")
    patch = METHODS["spm"].run(task, config, None).edit
    assert set(patch.layers) == set(select_layers(task.model.denoiser))
    assert all(layer.ranks.tolist() == [1] for layer in patch.layers.values())


# ---------------------------------------------------------------- closed forms


def name_inputs(size: int = 12) -> tuple[dict[str, torch.Tensor], NameInputs]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = draw(4, size)  # kept inputs lie in four directions of twelve
    return {"k": draw(5, size), "v": draw(7, size)}, NameInputs(
        draw(3, size), draw(3, size), draw(40, 4) @ basis, draw(2, size)
    )


def test_rece_without_rounds_is_uce_and_its_inputs_are_what_still_answers_as_before() -> None:
    old, inputs = name_inputs()
    kept = torch.cat([inputs.kept, inputs.null])
    now = rounds(old, inputs, 0)
    for name, weight in old.items():
        for preserve in (PRESERVE, 7.0):
            once = rounds(old, inputs, 0, preserve)[name]
            assert torch.allclose(once, weight + update(weight, inputs.erased, inputs.anchors, kept, preserve))
    found = adversarial_inputs(old, now, inputs.erased, 0.1).requires_grad_(True)
    wrong = sum((found @ now[name].T - inputs.erased @ old[name].T).square().sum() for name in old) + 0.1 * found.square().sum()
    (slope,) = torch.autograd.grad(wrong, found)
    assert slope.abs().max() < 1e-6

    def revived(weights: dict[str, torch.Tensor], said: torch.Tensor) -> float:
        return float(sum((said @ weights[name].T - inputs.erased @ old[name].T).square().sum() for name in old))

    found = found.detach()
    after = rounds(old, inputs, 1)
    assert revived(now, found) < 0.5 * revived(now, inputs.erased)
    assert revived(after, found) > 2 * revived(now, found)
    assert revived(after, inputs.erased) > 0.8 * revived(now, inputs.erased)  # and the name itself stays erased


def test_speed_leaves_kept_inputs_exactly_and_is_the_papers_lagrangian_solution() -> None:
    weights, inputs = name_inputs()
    weight = weights["k"]
    basis = free_basis(inputs.kept, inputs.null, 1e-12)
    delta = solved(weight, inputs, basis)
    assert (delta @ inputs.kept.T).abs().max() < 1e-9
    assert (delta @ inputs.null.T).abs().max() < 1e-9
    assert (delta @ inputs.erased.T).abs().max() > 0.1
    values, vectors = torch.linalg.eigh(inputs.kept.T @ inputs.kept)
    free = vectors[:, values < 1e-6 * values.max()]
    p, c, z = free @ free.T, inputs.erased.T, inputs.null.T
    m = torch.linalg.inv(c @ c.T @ p + torch.eye(12, dtype=torch.float64))
    q = torch.eye(12, dtype=torch.float64) - m @ z @ torch.linalg.inv(z.T @ p @ m @ z) @ z.T @ p
    paper = weight @ (inputs.anchors.T - c) @ c.T @ p @ q @ m
    assert torch.allclose(delta, paper, atol=1e-8)


def test_speed_counts_those_kept_inputs_that_the_edit_would_move() -> None:
    weights, inputs = name_inputs()
    far = torch.cat([inputs.kept, 10 * inputs.erased[:1]])
    delta = solved(weights["k"], inputs, torch.eye(12, dtype=torch.float64))
    counted = influential(delta, far)
    assert 0 < len(counted) < len(far)
    assert (counted == far[-1]).all(1).any()
    with pytest.raises(InputError, match="no direction free"):
        constrained(weights, dataclasses.replace(inputs, null=torch.eye(12, dtype=torch.float64)), 1e-2)


# ---------------------------------------------------------------- two gradients


def test_erasediff_never_goes_against_the_erasing_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        kept, erased = torch.randn(2, 6, generator=generator)
        scale = multiplier((kept,), (erased,), 0.1)
        along = float((kept + scale * erased) @ erased)
        assert scale >= 0
        assert along >= 0.1 * float(erased.square().sum()) - 1e-5
        assert scale == 0 or along == pytest.approx(0.1 * float(erased.square().sum()), rel=1e-3)


def test_sfr_on_weighs_images_by_their_losses_and_alternates() -> None:
    predicted = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    zero = torch.zeros(3, 1, 1, 1)
    losses = torch.tensor([1.0, 4.0, 9.0])
    weights = losses**-0.5
    found = adaptive(predicted, NoisyBatch(zero, torch.zeros(3), None, zero))
    assert float(found) == pytest.approx(float((weights / weights.mean() * losses).mean()))
    task, config = make("sfr-on", "class")
    setting = setting_of(task, config)
    loss, parameters = alternating(setting), setting.trainable.parameters()
    with trained(setting.trainable):
        first, second = loss(1), loss(2)
        steps = torch.autograd.grad(first["forget"], parameters)
    assert (set(first), set(second)) == ({"forget"}, {"retain"})
    assert float(first["forget"].detach()) < 0
    erased, kept = (fisher(setting, source) for source in (setting.samples.forget, setting.samples.retain))
    assert any(step.any() for step in steps)
    assert not any(step[one < other].any() for step, one, other in zip(steps, erased, kept, strict=True))
