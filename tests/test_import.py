"""`semu import`: the network of a research checkpoint computes what its tensors mean, and is erased from like any other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.models.imports.checkpoint import read_checkpoint
from semu_diffusion.models.imports.selective_amnesia import unet_of
from semu_diffusion.pipelines.cli.main import main as semu

WIDTH, MULTIPLES, CLASSES, BLOCKS, ATTENDS = 32, (1, 2), 3, 1, 1  # attention at level 1 alone
State = dict[str, torch.Tensor]


def random_state(seed: int = 0) -> State:
    """Tensors by the names and in the shapes of Selective Amnesia's and SalUn's `Conditional_Model`."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def add(name: str, *shape: int, scale: float | None = None) -> None:
        size = 1 / math.sqrt(math.prod(shape[1:])) if scale is None else scale
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator) * size
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1

    def norm(name: str, channels: int) -> None:
        add(name, channels, scale=0.2)
        state[f"{name}.weight"] += 1

    def block(name: str, given: int, made: int) -> None:
        norm(f"{name}.norm1", given)
        add(f"{name}.conv1", made, given, 3, 3)
        add(f"{name}.temb_cemb_proj", made, 8 * WIDTH)
        norm(f"{name}.norm2", made)
        add(f"{name}.conv2", made, made, 3, 3)
        if given != made:
            add(f"{name}.nin_shortcut", made, given, 1, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", channels, channels, 1, 1)

    for kind in ("temb", "cemb"):
        add(f"{kind}.dense.0", 4 * WIDTH, WIDTH)
        add(f"{kind}.dense.1", 4 * WIDTH, 4 * WIDTH)
    state["classes_emb.weight"] = torch.randn(CLASSES, WIDTH, generator=generator)
    state["null_classes_emb"] = torch.randn(WIDTH, generator=generator)
    add("conv_in", WIDTH, 3, 3, 3)
    low, high = (WIDTH * multiple for multiple in MULTIPLES)
    block("down.0.block.0", low, low)
    add("down.0.downsample.conv", low, low, 3, 3)
    block("down.1.block.0", low, high)
    attention("down.1.attn.0", high)
    block("mid.block_1", high, high)
    attention("mid.attn_1", high)
    block("mid.block_2", high, high)
    for number, skip in enumerate((high, low)):
        block(f"up.1.block.{number}", high + skip, high)
        attention(f"up.1.attn.{number}", high)
    add("up.1.upsample.conv", high, high, 3, 3)
    for number, given in enumerate((high + low, low + low)):
        block(f"up.0.block.{number}", given, low)
    norm("norm_out", low)
    add("conv_out", 3, low, 3, 3)
    return state


def meant(state: State, x: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
    """What the tensors mean, by their papers' description: the noise of x_t (N, 3, H, W), without a class for None."""

    def dense(name: str, h: torch.Tensor) -> torch.Tensor:
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(name: str, h: torch.Tensor, **options: Any) -> torch.Tensor:
        return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(name: str, h: torch.Tensor) -> torch.Tensor:
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def block(name: str, h: torch.Tensor) -> torch.Tensor:
        out = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", h)), padding=1)
        out = out + dense(f"{name}.temb_cemb_proj", F.silu(told))[:, :, None, None]
        out = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", out)), padding=1)
        return out + (conv(f"{name}.nin_shortcut", h) if f"{name}.nin_shortcut.weight" in state else h)

    def attend(name: str, h: torch.Tensor) -> torch.Tensor:
        q, k, v = (conv(f"{name}.{part}", norm(f"{name}.norm", h)).flatten(2).transpose(1, 2) for part in "qkv")
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        return h + conv(f"{name}.proj_out", found)

    rates = torch.exp(-math.log(10000) * torch.arange(WIDTH // 2) / (WIDTH // 2 - 1))
    angles = t.float()[:, None] * rates
    time = dense("temb.dense.1", F.silu(dense("temb.dense.0", torch.cat([angles.sin(), angles.cos()], 1))))
    row = state["null_classes_emb"].expand(len(x), -1) if classes is None else state["classes_emb.weight"][classes]
    told = torch.cat([time, dense("cemb.dense.1", F.silu(dense("cemb.dense.0", row)))], 1)
    first = conv("conv_in", x, padding=1)
    second = block("down.0.block.0", first)
    third = conv("down.0.downsample.conv", F.pad(second, (0, 1, 0, 1)), stride=2)
    fourth = attend("down.1.attn.0", block("down.1.block.0", third))
    h = block("mid.block_2", attend("mid.attn_1", block("mid.block_1", fourth)))
    for number, skip in enumerate((fourth, third)):
        h = attend(f"up.1.attn.{number}", block(f"up.1.block.{number}", torch.cat([h, skip], 1)))
    h = conv("up.1.upsample.conv", F.interpolate(h, scale_factor=2.0), padding=1)
    for number, skip in enumerate((second, first)):
        h = block(f"up.0.block.{number}", torch.cat([h, skip], 1))
    return conv("conv_out", F.silu(norm("norm_out", h)), padding=1)


def saved(path: Path, state: State, average: State | None = None) -> str:
    """As their code saves it: the state of a DataParallel, the optimizer's, the step, and the moving average."""
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save([wrapped, {"state": {}, "param_groups": [{"lr": 2e-4}]}, 800_000, average or state], path)
    return str(path)


def test_the_network_computes_what_the_checkpoint_means() -> None:
    state = random_state()
    unet = unet_of(state)
    assert unet.config.sample_size == 32
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    t, classes = torch.tensor([0, 300, 700, 999]), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        for given, labels in ((classes, classes), (None, torch.full((4,), CLASSES))):
            expected = meant(state, x, t, given)
            assert float((unet(x, t, class_labels=labels).sample - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_an_imported_checkpoint_is_erased_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "ckpt.pth", random_state(), random_state(1))
    folder = str(tmp_path / "model")
    assert semu(["import", file, folder, "--class-names", "cat,dog,ship", "--size", "8"]) == 0
    assert "3 classes at 8x8" in capsys.readouterr().out
    model = load_class_conditional(folder)
    assert (model.names, model.null, model.null_index) == (("cat", "dog", "ship"), 3, 3)
    own = unet_of(read_checkpoint(file), 8).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.denoiser.state_dict().items())
    quick = ["--steps", "1", "--forget-samples", "2", "--kept-samples", "2", "--images-per-condition", "1"]
    more = ["--sampling-steps", "1", "--classifier", "none", "--output", str(tmp_path / "run")]
    assert semu(["erase-class", "cat", "--model", folder, *quick, *more]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


def test_the_moving_average_is_taken_if_asked(tmp_path: Path) -> None:
    file = saved(tmp_path / "ckpt.pth", random_state(), random_state(1))
    assert torch.equal(read_checkpoint(file, ema=True)["conv_in.weight"], random_state(1)["conv_in.weight"])
    assert torch.equal(read_checkpoint(file)["conv_in.weight"], random_state()["conv_in.weight"])


class Harmful:
    """What a pickle can do while it is read."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_a_size_that_does_not_go_through_the_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(random_state(), tmp_path / "ckpt.pth")
    assert semu(["import", str(tmp_path / "ckpt.pth"), str(tmp_path / "model"), "--size", "7"]) == 2
    assert "the sides must be multiples of" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


MISSING = ("conv_out.weight", "cemb.dense.0.weight", "temb.dense.0.bias", "down.1.block.0.conv1.weight")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *(({k: v for k, v in random_state().items() if k != gone}, "of another network") for gone in MISSING),
        (Harmful(), "cannot be read as a checkpoint of tensors"),
        ({"weights": torch.zeros(2)}, "it has no conv_in.weight"),
        ([{"module.conv_in.weight": torch.zeros(2)}], "it has no down.0.block.0.conv1.weight"),
        (3, "it holds a int"),
        ({**random_state(), "up.0.block.0.conv1.weight": torch.zeros(1)}, "of another network"),
    ],
)
def test_what_is_no_such_checkpoint_is_one_line_and_writes_nothing(
    content: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "ckpt.pth")
    assert semu(["import", str(tmp_path / "ckpt.pth"), str(tmp_path / "model")]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert "executed" not in captured.out
    assert not (tmp_path / "model").exists()
