"""How a patch is used, in lines to copy: for each tool how it is put on, how strong, and how it is taken off."""

from __future__ import annotations

from dataclasses import dataclass

from semu_diffusion.patches.lora import DIFFUSERS_LORA, KOHYA_LORA
from semu_diffusion.pipelines.report.page.run import Run

__all__ = ["LIMITS", "Usage", "usages"]

LIMITS = (
    "A patch is not a safety guarantee: anyone with the base model can leave it off, and what was erased can be learned again "
    "from images.",
    "The place of the edit is itself a hint: who compares the patched weights with the original's sees in which layers and "
    "directions the concept was, which helps to bring it back.",
    "That it is no longer seen when asked for by name proves little by itself: a renamed label or word reaches the same in a "
    "second. Read what was brought back, and what appears without a condition.",
    "The judge is a classifier: what it calls something else may still look like it to you. Look at the pictures.",
    "Few samples say little: read the intervals, not the percentages.",
)


@dataclass(frozen=True)
class Usage:
    """``language`` of the lines: python, bash, json or text; ``off``: how it is taken off, in words or a line."""

    tool: str
    said: str
    lines: str
    language: str
    off: str


def usages(run: Run) -> list[Usage]:
    """For every tool that can load what this run wrote; paths are relative to the run folder. None of another's edit, nor of
    one that destroys the model."""
    if {"lora", "edited"} & run.record.keys() or run.evaluation.collapsed is not None:
        return []
    own = Usage(
        "semu-diffusion",
        "The exact patch; it refuses a model it was not made for. patch.scale(0.5) is half as strong.",
        'from semu_diffusion import ErasurePatch\n\npatch = ErasurePatch.load("patch.safetensors")\n'
        f"patch.apply(pipe.{run.network})",
        "python",
        f"patch.remove(pipe.{run.network}) restores every byte.",
    )
    if run.lora_form == "peft":
        return [own, *([_peft(run.network)] if run.lora else [])]
    name = "no-" + "-".join("".join(c if c.isalnum() else "-" for c in erased) for erased in run.evaluation.erased)
    if not run.lora:
        return [own]
    by_name = _by_diffusers(name, run)
    others = {"kohya": _by_others(name), "comfyui": _by_others(name)[:1]}
    return [own, *by_name[:-1], *others.get(run.lora_form, []), by_name[-1]]


def _peft(network: str) -> Usage:
    return Usage(
        "PEFT",
        "Its pipeline has no LoRA loader of its own; PEFT puts the same update on the network.",
        f'from peft import PeftModel\n\npipe.{network} = PeftModel.from_pretrained(pipe.{network}, "lora")',
        "python",
        f"pipe.{network} = pipe.{network}.unload()",
    )


def _by_diffusers(name: str, run: Run) -> list[Usage]:
    adapter, network = name.replace("-", "_"), f"pipe.{run.network}"
    load = (
        f'pipe.load_lora_weights(\n    {{}},\n    weight_name="{DIFFUSERS_LORA}",\n    adapter_name="{adapter}",\n)\n'
        f'pipe.set_adapters("{adapter}", 1.0)'
    )
    unload = f'pipe.delete_adapters("{adapter}"), or pipe.unload_lora_weights() for all of them.'
    return [
        Usage("diffusers, from this folder", "Needs PEFT installed.", load.format('"lora"'), "python", unload),
        Usage(
            "diffusers, from the Hub",
            f"After semu push {run.folder.name} YOU/{name}.",
            load.format(f'"YOU/{name}", subfolder="lora"'),
            "python",
            unload,
        ),
        Usage(
            "PEFT",
            "The adapter that diffusers loaded is one of PEFT; its strength can be changed in place.",
            load.format('"lora"') + f'\n{network}.set_adapters(["{adapter}"], [0.5])',
            "python",
            f"{network}.disable_adapters(); {network}.enable_adapters() puts it back.",
        ),
    ]


def _by_others(name: str) -> list[Usage]:
    """By ComfyUI, and the tools that have the single file of a Stable Diffusion."""
    tag, words = f"<lora:{name}:1>", f"Copy lora/{KOHYA_LORA} to {{}}{name}.safetensors"
    comfy = (
        f'{{"class_type": "LoraLoaderModelOnly", "inputs": {{\n  "model": ["4", 0],\n  "lora_name": "{name}.safetensors",\n'
        '  "strength_model": 1.0}}'
    )
    return [
        Usage(
            "ComfyUI",
            words.format("ComfyUI/models/loras/") + " and put a node LoraLoaderModelOnly behind the checkpoint "
            "(in the API format, 4 being the checkpoint's node):",
            comfy,
            "json",
            "Bypass or delete the node.",
        ),
        Usage("A1111", words.format("models/Lora/") + " and write in the prompt:", tag, "text", "Delete the tag."),
        Usage("Forge", words.format("models/Lora/") + " and write in the prompt:", tag, "text", "Delete the tag."),
        Usage(
            "sd-scripts",
            "Generates with the twin in kohya's names.",
            "python gen_img.py --ckpt MODEL --outdir OUT --prompt 'PROMPT' \\\n"
            f"  --network_module networks.lora --network_weights lora/{KOHYA_LORA} --network_mul 1.0",
            "bash",
            "Leave the --network flags out.",
        ),
    ]
