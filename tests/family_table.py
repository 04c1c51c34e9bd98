"""docs/families.md, of `FAMILIES` and of the tiny pipelines that its tests run: ``python tests/family_table.py``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from family_models import BUILDERS, built

from semu_diffusion.domains.concepts import STABLE_DIFFUSION_GUIDANCE
from semu_diffusion.domains.config import ClassErasureConfig, ConceptErasureConfig
from semu_diffusion.eval.probes import PROBES
from semu_diffusion.layers import layer_words, select_layers
from semu_diffusion.models.families import FAMILIES, adapt_pipeline, adapt_text_pipeline, network_of
from semu_diffusion.pipelines.runs.config import DEFAULTS

CONFIGS: dict[str, Any] = {"class": ClassErasureConfig, "concept": ConceptErasureConfig}
USUAL = {kind: {"guidance_scale": STABLE_DIFFUSION_GUIDANCE, **defaults} for kind, defaults in DEFAULTS.items()}
HEAD = """# Families of models

Written by `make commands` from the registry and the tests. Each line is a family that `tests/test_families.py` takes through
the whole way: a tiny random pipeline of its real classes is saved, erased from by the command, evaluated, revived, its LoRA
loaded by the named client and compared with the patch, the patch taken off again to the last bit; and its samples are compared
with those of diffusers' own pipeline from the same noise. The weights are random: that an erasure succeeds is measured on the
embedded models alone (`ddpm`, `sd1`). Layers of other kinds can be named with `--layers`, where LoRA takes them.

| family | command | pipeline, network tested | layers edited by default | `--retain` | w, steps | LoRA for | probes |
|---|---|---|---|---|---|---|---|
"""


NOTES = """
## Quantised networks

The commands and `erase_class` and `erase_concept` from Python take a pipeline whose network was quantised by diffusers'
`TorchAoConfig` (int8), `QuantoConfig` (int8, float8) or `BitsAndBytesConfig` (int8; nf4): each weight is read as floats for the
moment in which it is needed, also in the backward pass, R is trained in float32 beside it, and what is evaluated reads the
update with the weight. The patch is for the same model in float; as a LoRA it goes on both. Nothing is merged into quantised
weights: `semu merge --model` takes the model in float. torchao and optimum-quanto have a test of a folder's whole way where
they are installed (in CI a plain int8 class stands for them); bitsandbytes' layers were tried on a CPU by hand, since diffusers
loads them on a GPU alone. Other formats (GGUF, Nunchaku, ModelOpt) and quantised convolutions are refused.

## Not supported

* **The class-conditioned UNet of the Hugging Face diffusion course** (`ClassConditionedUnet`: `class_emb` and a UNet2DModel,
  the embedding beside the picture, as channels that are the same in every pixel). No `class_labels` of a UNet2DModel say the
  same: at the border, where the first convolution is padded with zeros, such channels are felt otherwise. It would need a
  network, a saved form and a pipeline of its own, none of which diffusers loads; and it has no null class to guide by.
* **guided-diffusion's ImageNet model of 128 pixels** has four heads at every width, a UNet2DModel heads of one width
  (`attention_head_dim`). Heads set on the blocks after they were made compute the same, but are in no config: saved and loaded
  again, by diffusers or by this package, the network would be another one without a word.
"""


def families_table() -> str:
    """Markdown of all families, in the order of their registry, and notes."""
    return HEAD + "\n".join(f"| {' | '.join(_cells(name))} |" for name in FAMILIES) + "\n" + NOTES


def _cells(name: str) -> Iterator[str]:
    family, pipeline = FAMILIES[name], built(name)
    config = CONFIGS[family.kind]
    fields = {field.name: field for field in dataclasses.fields(config)}
    model: Any = adapt_text_pipeline(pipeline, ["a cat"]) if family.kind == "concept" else adapt_pipeline(pipeline)
    layers = select_layers(network_of(pipeline), fields["layers"].default)
    choices = get_args(get_type_hints(config)["retain"]) or fields["retain"].metadata["metavar"].split("|")
    usual: dict[str, Any] = {**USUAL[family.kind], **model.usual}
    yield f"{family.title} (`{name}`)"
    yield f"`erase-{family.kind}`"
    yield f"{type(pipeline).__name__}, {type(network_of(pipeline)).__name__}"
    yield ", ".join(f"`{word.rsplit(' ', 1)[0]}`" for word in layer_words(layers).split(", "))
    yield ", ".join(choices)
    yield f"{usual['guidance_scale']:g}, {usual['sampling_steps']}"
    yield family.clients
    yield ", ".join(probe for probe, kind in PROBES.items() if kind.applies(model))


if __name__ == "__main__":
    assert set(BUILDERS) == set(FAMILIES)
    sys.stdout.write(families_table())
