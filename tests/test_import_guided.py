"""`semu import` of guided-diffusion: the network predicts the noise that the checkpoint's tensors mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.models.imports import guided_diffusion
from semu_diffusion.models.imports.guided_diffusion import Published, unet_of
from semu_diffusion.pipelines.cli.main import main as semu

CLASSES, HEAD, LOW, HIGH = 3, 16, 32, 64
State = dict[str, torch.Tensor]


def tiny(by_head: bool) -> Published:
    return Published(8, (LOW, HIGH), 1, "linear", by_head, HEAD)


def random_state() -> State:
    """Tensors by the names and in the shapes of `UNetModel`: two levels, attention in the second, the variance learned."""
    generator, state = torch.Generator().manual_seed(0), State()

    def add(name: str, *shape: int, norm: bool = False) -> None:
        size = 0.2 if norm else 1 / math.sqrt(math.prod(shape[1:]))
        state[f"{name}.weight"] = norm + torch.randn(*shape, generator=generator) * size
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1

    def block(name: str, given: int, made: int) -> None:
        add(f"{name}.in_layers.0", given, norm=True)
        add(f"{name}.in_layers.2", made, given, 3, 3)
        add(f"{name}.emb_layers.1", 2 * made, 4 * LOW)
        add(f"{name}.out_layers.0", made, norm=True)
        add(f"{name}.out_layers.3", made, made, 3, 3)
        if given != made:
            add(f"{name}.skip_connection", made, given, 1, 1)

    def attention(name: str) -> None:
        add(f"{name}.norm", HIGH, norm=True)
        add(f"{name}.qkv", 3 * HIGH, HIGH, 1)
        add(f"{name}.proj_out", HIGH, HIGH, 1)

    add("time_embed.0", 4 * LOW, LOW)
    add("time_embed.2", 4 * LOW, 4 * LOW)
    state["label_emb.weight"] = torch.randn(CLASSES, 4 * LOW, generator=generator)
    add("input_blocks.0.0", LOW, 3, 3, 3)
    block("input_blocks.1.0", LOW, LOW)
    block("input_blocks.2.0", LOW, LOW)  # down
    block("input_blocks.3.0", LOW, HIGH)
    attention("input_blocks.3.1")
    block("middle_block.0", HIGH, HIGH)
    attention("middle_block.1")
    block("middle_block.2", HIGH, HIGH)
    for number, skip in enumerate((HIGH, LOW)):
        block(f"output_blocks.{number}.0", HIGH + skip, HIGH)
        attention(f"output_blocks.{number}.1")
    block("output_blocks.1.2", HIGH, HIGH)  # up
    for number, given in ((2, HIGH + LOW), (3, LOW + LOW)):
        block(f"output_blocks.{number}.0", given, LOW)
    add("out.0", LOW, norm=True)
    add("out.2", 6, LOW, 3, 3)
    return state


def meant(state: State, x: torch.Tensor, t: torch.Tensor, classes: torch.Tensor, by_head: bool) -> torch.Tensor:
    """What the tensors mean, by the paper's appendix: the noise and the variance (N, 6, H, W)."""

    def layer(name: str, h: torch.Tensor, function: Any = F.linear, **options: Any) -> torch.Tensor:
        return function(h, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(name: str, h: torch.Tensor) -> torch.Tensor:
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def block(name: str, h: torch.Tensor, resized: Any = lambda h: h) -> torch.Tensor:
        out = layer(f"{name}.in_layers.2", resized(F.silu(norm(f"{name}.in_layers.0", h))), F.conv2d, padding=1)
        scale, shift = layer(f"{name}.emb_layers.1", F.silu(told))[:, :, None, None].chunk(2, 1)
        out = F.silu(norm(f"{name}.out_layers.0", out) * (1 + scale) + shift)
        kept = resized(h)
        if f"{name}.skip_connection.weight" in state:
            kept = layer(f"{name}.skip_connection", kept, F.conv2d)
        return kept + layer(f"{name}.out_layers.3", out, F.conv2d, padding=1)

    def attend(name: str, h: torch.Tensor) -> torch.Tensor:
        qkv = layer(f"{name}.qkv", norm(f"{name}.norm", h).flatten(2), F.conv1d)
        heads = qkv.unflatten(1, (-1, 3, HEAD)) if by_head else qkv.unflatten(1, (3, -1, HEAD)).transpose(1, 2)
        q, k, v = (one.transpose(2, 3) for one in heads.unbind(2))
        found = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
        return h + layer(f"{name}.proj_out", found, F.conv1d).reshape(h.shape)

    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(LOW // 2) / (LOW // 2))
    time = layer("time_embed.2", F.silu(layer("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))
    told = time + state["label_emb.weight"][classes]
    first = layer("input_blocks.0.0", x, F.conv2d, padding=1)
    second = block("input_blocks.1.0", first)
    third = block("input_blocks.2.0", second, lambda h: F.avg_pool2d(h, 2))
    fourth = attend("input_blocks.3.1", block("input_blocks.3.0", third))
    h = block("middle_block.2", attend("middle_block.1", block("middle_block.0", fourth)))
    for number, skip in enumerate((fourth, third)):
        h = attend(f"output_blocks.{number}.1", block(f"output_blocks.{number}.0", torch.cat([h, skip], 1)))
    h = block("output_blocks.1.2", h, lambda h: F.interpolate(h, scale_factor=2.0))
    for number, skip in ((2, second), (3, first)):
        h = block(f"output_blocks.{number}.0", torch.cat([h, skip], 1))
    return layer("out.2", F.silu(norm("out.0", h)), F.conv2d, padding=1)


@pytest.mark.parametrize("by_head", [False, True])
def test_the_network_predicts_the_noise_that_the_checkpoint_means(by_head: bool) -> None:
    state = random_state()
    unet = unet_of(state, tiny(by_head))
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t, classes = torch.tensor([0, 300, 700, 999]), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        expected = meant(state, x, t, classes, by_head)[:, :3]
        found = unet(x, t, class_labels=classes).sample
        other = unet_of(state, tiny(not by_head))(x, t, class_labels=classes).sample
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert float((other - expected).abs().max()) > 1e-2 * float(expected.abs().max())  # the order of query, key, value matters


def test_a_known_checkpoint_becomes_a_model_without_a_null_class_and_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(random_state(), tmp_path / "ckpt.pt")
    given = ["import", str(tmp_path / "ckpt.pt"), str(tmp_path / "model")]
    assert semu(given) == 2
    assert "at 64 or 256 pixels" in capsys.readouterr().err
    monkeypatch.setattr(guided_diffusion, "PUBLISHED", (tiny(False),))
    assert semu([*given, "--class-names", "cat,dog,ship"]) == 0
    model = load_class_conditional(str(tmp_path / "model"))
    assert (model.names, model.null, model.image_shape) == (("cat", "dog", "ship"), None, (3, 8, 8))


@pytest.mark.parametrize("kind", guided_diffusion.PUBLISHED)
def test_the_published_networks_have_a_place_for_each_layer(kind: Published) -> None:
    """Built without memory: every name of ours has one there, and no two parts but of query, key and value share it."""
    from diffusers import UNet2DModel

    state: State = {"label_emb.weight": torch.empty(2, 4), guided_diffusion.FIRST: torch.empty(1, 3)}
    attends = [kind.size // 2**level <= 32 for level in range(len(kind.widths))]
    state |= {f"input_blocks.{(kind.layers + 1) * i + 1}.1.qkv.weight": torch.empty(1) for i, one in enumerate(attends) if one}
    with torch.device("meta"):
        unet = UNet2DModel(
            block_out_channels=kind.widths, layers_per_block=kind.layers, attention_head_dim=kind.head, num_class_embeds=2,
            down_block_types=tuple("AttnDownBlock2D" if one else "ResnetDownsampleBlock2D" for one in attends),
            up_block_types=tuple("AttnUpBlock2D" if one else "ResnetUpsampleBlock2D" for one in attends[::-1]),
            downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32,
        )  # fmt: skip
    modules = dict.fromkeys(name.rpartition(".")[0] for name in unet.state_dict())
    theirs = [guided_diffusion._original(name, kind.layers, attends[::-1]) for name in modules]
    shared = {name for name in theirs if theirs.count(name) > 1}
    assert all(name.endswith(".qkv") and theirs.count(name) == 3 for name in shared)
    blocks = {name.split(".")[1] for name in theirs if name.startswith("input_blocks.")}
    assert len(blocks) == (kind.layers + 1) * len(kind.widths)
    assert {name.split(".")[1] for name in theirs if name.startswith("output_blocks.")} == blocks


def test_four_heads_at_every_width_are_in_no_config_that_diffusers_keeps(tmp_path: Path) -> None:
    """Why the model of 128 pixels is refused. If this fails, it can be imported."""
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention

    shape: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1,
        "down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2,
    }  # fmt: skip
    with pytest.raises(TypeError):
        UNet2DModel(**shape, attention_head_dim=(8, 16))
    unet = UNet2DModel(**shape, attention_head_dim=16).eval()
    heads = [one for one in unet.modules() if isinstance(one, Attention)]
    assert {one.heads for one in heads} == {2, 4}
    for one in heads:
        one.heads = 4
    x, t = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5])
    unet.save_pretrained(tmp_path)
    with torch.no_grad():
        assert not torch.allclose(UNet2DModel.from_pretrained(tmp_path).eval()(x, t).sample, unet(x, t).sample, atol=1e-4)
