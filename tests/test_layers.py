"""Which layers an edit may touch."""

from __future__ import annotations

import pytest
from text_models import tiny_pipeline
from tiny_models import tiny_unet
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.layers import KINDS, select_layers


def test_all_takes_every_linear_and_conv_of_the_model_and_nothing_else() -> None:
    unet = tiny_unet()
    expected = {name for name, module in unet.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
    assert set(select_layers(unet, ["all"])) == expected
    assert set(select_layers(unet)) == expected


def test_kinds_part_the_layers() -> None:
    unet = tiny_unet()
    chosen = {kind: select_layers(unet, [kind]) for kind in KINDS if kind != "cross-attention"}
    assert all(isinstance(layer, nn.Linear) for layer in chosen["linear"].values())
    assert all(isinstance(layer, nn.Conv2d) for layer in chosen["conv"].values())
    assert {**chosen["linear"], **chosen["conv"]} == chosen["all"]
    assert chosen["attention"]
    assert all("attentions" in name for name in chosen["attention"])
    assert not any("attentions" in name for name in chosen["all"].keys() - chosen["attention"].keys())


def test_one_glob_is_no_list_of_letters() -> None:
    assert select_layers(tiny_unet(), "mid_block.*").keys() == select_layers(tiny_unet(), ["mid_block.*"]).keys()


def test_globs_add_and_exclamation_marks_take_away() -> None:
    unet = tiny_unet()
    assert set(select_layers(unet, ["conv_in", "*.to_k"])) == {
        "conv_in",
        *(name for name, _ in unet.named_modules() if name.endswith(".to_k")),
    }
    without = select_layers(unet, ["all", "!time_embedding.*", "!attention"])
    assert set(without) == {
        name for name in select_layers(unet) if "attentions" not in name and not name.startswith("time_embedding.")
    }
    assert set(select_layers(unet, ["!conv"])) == set(select_layers(unet, ["linear"]))


@pytest.mark.parametrize("pattern", ["atention", "*.to_kk", "!atention", "!mid_block.conv9"])
def test_a_pattern_that_names_nothing_here_is_refused_beside_one_that_does(pattern: str) -> None:
    with pytest.raises(InputError, match=f"matches {pattern.removeprefix('!').replace('*', '.')}"):
        select_layers(tiny_unet(), ["conv", pattern])
    assert select_layers(tiny_unet(), ["conv", "!*.conv_depth"])  # a default leaves out what other families have


def test_cross_attention_is_what_looks_at_the_text() -> None:
    unet = tiny_pipeline().unet
    chosen = select_layers(unet, ["cross-attention"])
    assert {name.split(".attn2.")[1] for name in chosen} == {"to_q", "to_k", "to_v", "to_out.0"}
    assert set(chosen) == {name for name in select_layers(unet, ["attention"]) if ".attn2." in name}
    with pytest.raises(InputError, match="no Linear or Conv2d layer matches cross-attention"):
        select_layers(tiny_unet(), ["cross-attention"])


def test_a_shared_weight_is_taken_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert list(select_layers(model)) == ["0"]
    assert list(select_layers(model, ["2"])) == ["2"]


def test_layers_that_do_not_simply_multiply_their_weight_are_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return 2 * super().forward(x)

    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(Scaled(4, 4), nn.MultiheadAttention(4, 2), nn.Embedding(4, 4), parametrised, nn.Linear(4, 4))
    assert list(select_layers(model)) == ["4"]


def test_nothing_selected_is_refused_and_names_layers_that_exist() -> None:
    with pytest.raises(InputError, match=r"no Linear or Conv2d layer matches nothing\.\*.*conv_in") as caught:
        select_layers(tiny_unet(), ["nothing.*"])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        select_layers(nn.Sequential(nn.ReLU()))
