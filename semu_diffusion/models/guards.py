"""One guard for every network that comes in: it can be erased from as it is, or one line says what stands in the way.

A hook that does not fire, an adapter that renames layers, a condition that is left out: each would make an erasure wrong
without a word, so each is looked for here, by the adapters.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from semu_diffusion.errors import InputError, Notice, reason
from semu_diffusion.patches.modes import evaluating
from semu_diffusion.patches.quantised import FrozenWeight, quantised_layers, readable
from semu_diffusion.patches.weights import is_fused
from semu_diffusion.patches.wrappers import eager, unwrapped

__all__ = [
    "check_network",
    "check_parts",
    "check_runs",
    "check_text_condition",
    "check_tokenizer",
    "notice_few_steps",
    "refusing",
    "require_finite",
    "sides",
    "small_sides",
    "with_plain_network",
]

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LARGEST_SIDE = 8192
NETWORKS = {"unet": "UNet", "transformer": "transformer"}
SPREAD = "the {} is of {}, whose weights are spread over processes: gather them first"


def with_plain_network(pipeline: Any, source: str, part: str) -> Any:
    """The pipeline; if its network ``part`` is compiled, wrapped or quantised, a copy with the network itself, and a notice."""
    given = getattr(pipeline, part)
    inside = unwrapped(given)
    plain = eager(inside)
    network = readable(plain)
    if network is given:
        return pipeline
    how = type(given).__name__ if inside is not given else "compiled"
    wrapped = f"is wrapped ({how}); the erasure runs on the network inside, uncompiled"
    quantised = "is quantised: the patch is for its weights in float, and as a LoRA for both"
    for message in [wrapped] * (plain is not given) + [quantised] * (network is not plain):
        warnings.warn(f"{source}: the {NETWORKS[part]} {message}", Notice, stacklevel=5)
    other = copy.copy(pipeline)
    setattr(other, part, network)
    return other


def check_network(network: nn.Module, source: str) -> None:
    """InputError for a network whose layers are not plainly its own: adapters, hooks, quantised or missing weights; what
    changes how it computes, but may be meant, is said."""
    for found in (_adapters(network), _hooks(network), _weights(network), _tied(network)):
        if found is not None:
            raise InputError(f"{source}: {found}")
    if any(getattr(block, "s1", None) for block in getattr(network, "up_blocks", ())):
        what = "FreeU is on, so the erasure is of what the UNet draws with it; pipe.disable_freeu() first for one without"
        warnings.warn(f"{source}: {what}", Notice, stacklevel=5)


def _called(network: nn.Module) -> str:
    return NETWORKS["unet" if "UNet" in type(network).__name__ else "transformer"]


def _adapters(network: nn.Module) -> str | None:
    if any(type(module).__module__.startswith("peft.") for module in network.modules()):
        names = ", ".join(getattr(network, "peft_config", None) or {}) or "unnamed"
        return (
            f"the {_called(network)} has adapters (LoRA: {names}), and would be edited under their names: "
            "pipe.unload_lora_weights() first (after pipe.fuse_lora(), if the erasure shall see them)"
        )
    processors = getattr(network, "attn_processors", {})
    images = getattr(getattr(network, "config", None), "encoder_hid_dim_type", None) == "ip_image_proj"
    if images or any("IPAdapter" in type(one).__name__ for one in processors.values()):
        return f"the {_called(network)} has an IP-Adapter, which wants a picture in every call: pipe.unload_ip_adapter() first"
    if any(map(is_fused, network.modules())):
        return "the attention's projections are fused: pipe.unfuse_qkv_projections() first"
    return None


def _hooks(network: nn.Module) -> str | None:
    if "_original_forward" in network.__dict__:
        return (
            f"accelerate computes the {_called(network)} in mixed precision, whatever --precision says: take "
            f"accelerator.unwrap_model({_called(network).lower()}, keep_fp32_wrapper=False)"
        )
    name = _called(network)
    for module in network.modules():
        if hasattr(module, "_hf_hook"):
            return f"the {name} is offloaded or spread out: pipe.remove_all_hooks() and put pipe.{name.lower()} on one device"
        registry = getattr(module, "_diffusers_hook", None)
        if registry is not None and registry.hooks:
            return (
                f"the {name} has diffusers hooks ({', '.join(registry.hooks)}), which change how it computes: load it without"
            )
        if type(module).__name__ in ("FullyShardedDataParallel", "DeepSpeedEngine"):
            return SPREAD.format(name, type(module).__name__)
    return None


def _weights(network: nn.Module) -> str | None:
    read = {f"{name}.weight" for name in quantised_layers(network)}
    parameters = {name: one for name, one in network.named_parameters() if name not in read}
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters.values()})
    for name, parameter in parameters.items():
        if parameter.is_meta:
            return f"the weights of {name} are not loaded (they are on the meta device)"
        if type(parameter.data).__name__ == "DTensor":
            return SPREAD.format(_called(network), "DTensor")
        if parameter.dtype not in FLOATS or type(parameter.data) not in (torch.Tensor, FrozenWeight):
            return f"the weights are quantised ({name}: {parameter.dtype}): load them in float32 or bfloat16"
        if parameter.is_inference():
            return "the weights were made in torch.inference_mode, so that no gradient can be taken: load them outside of it"
    if len(dtypes) > 1:
        return f"the weights are of several precisions ({', '.join(dtypes)}): pipe.{_called(network).lower()}.float() first"
    places = sorted({str(parameter.device) for parameter in parameters.values()})
    if len(places) > 1:
        return f"the weights are on several devices ({', '.join(places)}): put the {_called(network)} on one"
    with torch.no_grad():  # the sum is several times as fast, and is finite of almost all weights that are
        finite = {name: bool(value.sum().isfinite() or value.isfinite().all()) for name, value in parameters.items()}
    broken = next((name for name in finite if not finite[name]), None)
    return None if broken is None else f"the weights of {broken} are not finite numbers"


def _tied(network: nn.Module) -> str | None:
    """A shared weight has one gradient, but each of its layers sees other inputs: what is protected in one is not in both."""
    owners: dict[int, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and "weight" in module._parameters:
            first = owners.setdefault(id(module.weight), name)
            if first != name:
                return f"{first} and {name} share one weight, so that neither can be edited alone"
    return None


@contextmanager
def refusing(wrong: str) -> Iterator[None]:
    """Inside, whatever a foreign file brings about in a library is an InputError: what is ``wrong``, and the reason."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{wrong} ({reason(error, 150)})") from error


def require_finite(made: torch.Tensor) -> None:
    if not torch.isfinite(made).all():
        raise ValueError("it gives other than finite numbers")


@torch.no_grad()
def check_runs(network: nn.Module, what: str, attempt: Callable[[], torch.Tensor], shape: Sequence[int]) -> None:
    """InputError if ``attempt``, a pass of a small input through ``network``, fails or gives other than finite numbers of
    that shape. It is in eval mode meanwhile: dropout would draw from torch's global generator."""
    with evaluating(network), refusing(f"{what} does not compute with its config"):
        made = attempt()
        if tuple(made.shape) != tuple(shape):
            raise ValueError(f"{tuple(made.shape)} comes out instead of {tuple(shape)}")
        require_finite(made)


def check_parts(model: Any, source: str) -> None:
    """InputError if the network of a latent model or its autoencoder do not compute on something small, or not with each
    other and the condition."""
    channels, *size = model.latent_shape
    levels = len(model.denoiser.config.get("block_out_channels", (1, 1)))  # a transformer gets 4x4, some tokens
    row, t = (torch.tensor([value], device=model.device) for value in (model.null or 0, 1))
    latents = torch.zeros(1, channels, *small_sides(size, levels), device=model.device)
    check_runs(model.denoiser, f"{source}: the denoiser", lambda: model.predict(latents, t, row), latents.shape)
    latents = latents[..., :4, :4]
    factor = model.image_shape[1] // size[0]
    images = torch.zeros(1, model.image_shape[0], *(side * factor for side in latents.shape[2:]))
    what = f"{source}: the autoencoder"
    check_runs(model.pipeline.vae, what, lambda: model.encode(images), latents.shape)
    check_runs(model.pipeline.vae, what, lambda: model.decode(latents), images.shape)


def check_tokenizer(tokenizer: Any, encoder: Any) -> None:
    """InputError for a tokenizer and a text encoder that do not belong together: tokens that it lacks, another end."""
    rows, most = len(encoder.get_input_embeddings().weight), max(tokenizer.get_vocab().values())
    end, own = getattr(encoder.config, "eos_token_id", None), tokenizer.eos_token_id
    wrong = "the tokenizer and the text encoder do not belong together"
    if most >= rows:
        raise InputError(f"{wrong}: the tokenizer has tokens up to {most}, the encoder {rows} of them")
    if type(encoder).__name__.startswith("CLIP") and end not in (None, 2, own):  # 2 is what early configs of CLIP say
        raise InputError(f"{wrong}: a text ends with token {own}, and for the encoder with {end}")


def small_sides(size: Sequence[int], levels: int) -> list[int]:
    """Sides of the smallest input that goes through a network of so many resolutions as one of ``size`` does."""
    least = 2**levels  # two pixels at the lowest resolution: a normalisation wants more than one number
    return [min(side, least + side % least) for side in size]


def sides(size: Any, source: str) -> tuple[int, int]:
    """(height, width) of a config's ``sample_size``. Raises InputError for a missing one, and for what is no size."""
    given = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(given) != 2 or not all(type(one) is int and 0 < one <= LARGEST_SIDE for one in given):
        hint = "set it, as register_to_config(sample_size=64) does"
        raise InputError(f"{source}: the config has no sample_size that is a size ({size!r}), so none is known: {hint}")
    return given[0], given[1]


def check_text_condition(pipeline: Any, config: Any, source: str) -> None:
    """InputError for a pipeline whose UNet, by its ``config``, wants more than a noisy latent, a timestep and the text."""
    both = getattr(pipeline, "text_encoder_2", None) is not None
    if config.in_channels != pipeline.vae.config.latent_channels or config.out_channels != config.in_channels:
        raise InputError(
            f"{source} is made for inpainting or editing (its UNet takes {config.in_channels} channels, gives "
            f"{config.out_channels}, and a latent has {pipeline.vae.config.latent_channels}); erase-concept takes a "
            "text-to-image model"
        )
    if pipeline.config.get("requires_aesthetics_score"):
        raise InputError(f"{source} is the refiner of Stable Diffusion XL: erase from the base model, which draws the picture")
    texts = ("text_encoder", "tokenizer", *(("text_encoder_2", "tokenizer_2") if hasattr(pipeline, "text_encoder_2") else ()))
    missing = [part for part in texts if getattr(pipeline, part, None) is None]
    if missing:
        raise InputError(f"{source} has no {missing[0]}: load the pipeline with all of its parts")
    if config.get("time_cond_proj_dim") is not None:
        raise InputError(
            f"{source} is distilled for guidance (LCM: time_cond_proj_dim {config.time_cond_proj_dim}), which is an input of "
            "its UNet: erase from the model it was distilled from"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise InputError(f"{source}: the UNet wants class labels beside the text, which erase-concept does not give")
    added, hidden = config.get("addition_embed_type"), config.get("encoder_hid_dim_type")
    if added not in (None, "text", "text_time") or hidden not in (None, "text_proj") or (added == "text_time") != both:
        what = added if added not in (None, "text") else hidden or "a second text encoder"
        raise InputError(
            f"{source} is a {type(pipeline).__name__} with a condition beside the text ({what}); erase-concept takes Stable "
            "Diffusion 1, 2 or XL"
        )
    if pipeline.vae.config.get("latents_mean") is not None:
        raise InputError(f"{source}: the autoencoder's latents have a mean of their own, which is not supported")
    sides(config.sample_size, source)
    notice_few_steps(pipeline.scheduler, source)


def notice_few_steps(scheduler: Any, source: str) -> None:
    """A Notice for a scheduler that networks are given which were distilled to few steps (LCM, Turbo, Lightning)."""
    name, spacing = type(scheduler).__name__, scheduler.config.get("timestep_spacing")
    if name in ("LCMScheduler", "TCDScheduler") or (name.startswith("Euler") and spacing == "trailing"):
        said = (
            f"{source}: {name}{' with trailing steps' if spacing == 'trailing' else ''} is for networks distilled to few steps"
        )
        warnings.warn(
            f"{said}; here it is sampled by DDIM with guidance (--guidance-scale 1 --sampling-steps 4 suits them)",
            Notice,
            stacklevel=5,
        )
