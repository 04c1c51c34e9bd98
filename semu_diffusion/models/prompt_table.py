"""Prompts as the rows of a table: encoded once, so that the text encoders may leave the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.models.guards import check_tokenizer, refusing, require_finite, sides

__all__ = ["PromptTable", "encode_prompts", "on_device"]

LONGEST = 100_000  # transformers gives 10^30 for a length that is not known


@dataclass(frozen=True)
class PromptTable:
    """Prompts and their embeddings (P, T, D); the last row is the empty prompt.

    ``pooled`` (P, E) and ``time_ids`` (6,) are the added conditions of SDXL, else None.
    """

    prompts: tuple[str, ...]
    embeddings: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None


@contextmanager
def on_device(module: Any, device: torch.device) -> Iterator[None]:
    """Inside, the module is on the device; afterwards where it was, so that it may rest in the machine's own memory."""
    home = module.device
    if home == device:  # a quantised one cannot be moved, and need not be
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


@refusing("the tokenizer and the text encoder do not encode")
@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str], batch_size: int = 32) -> PromptTable:
    """The table of the prompts, in order and once each, and the empty prompt as its last row.

    Prompts are encoded ``batch_size`` at a time, the last batch filled up, so that no embedding depends on the others.

    Raises InputError, naming the prompt, if one is longer than a text encoder takes: it would be cut silently.
    """
    wanted = (*dict.fromkeys(prompt for prompt in prompts if prompt.strip()), "")
    towers = _towers(pipeline)
    for tokenizer, most in towers:
        _check_lengths(pipeline, tokenizer, most, wanted)
    device = pipeline.unet.device
    options: dict[str, Any] = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    embeddings, pooled = [], []
    with ExitStack() as stack:
        for tokenizer, most in towers:
            stack.enter_context(_padded_to(tokenizer, most))
        for name in ("text_encoder", "text_encoder_2"):
            if getattr(pipeline, name, None) is not None:
                stack.enter_context(on_device(getattr(pipeline, name), device))
        for start in range(0, len(wanted), batch_size):
            part = list(wanted[start : start + batch_size])
            found = pipeline.encode_prompt(part + [""] * (batch_size - len(part)), **options)  # always as many, see above
            embeddings.append(found[0][: len(part)].float())
            if len(found) == 4:
                pooled.append(found[2][: len(part)].float())
    table = torch.cat(embeddings)
    require_finite(table)
    if not pooled:
        return PromptTable(wanted, table)
    added = torch.cat(pooled)
    if pipeline.config.force_zeros_for_empty_prompt:  # XL was trained with zeros, not with an encoded empty prompt
        table[-1], added[-1] = 0.0, 0.0
    size = [side * pipeline.vae_scale_factor for side in sides(pipeline.unet.config.sample_size, "the pipeline")]
    time_ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=device)  # as drawn: its size, uncropped
    return PromptTable(wanted, table, added, time_ids)


def _towers(pipeline: Any) -> list[tuple[Any, int]]:
    """Each tokenizer, and how many tokens its encoder takes: a copied folder may not say it, the encoder's positions do."""
    found = []
    for end in ("", "_2"):
        tokenizer, encoder = (getattr(pipeline, name + end, None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is not None and encoder is not None:
            check_tokenizer(tokenizer, encoder)
            positions = getattr(encoder.config, "max_position_embeddings", None) or tokenizer.model_max_length
            found.append((tokenizer, int(min(tokenizer.model_max_length, positions))))
            if found[-1][1] > LONGEST:
                raise InputError(
                    "neither the tokenizer nor the text encoder says how many tokens it takes: set model_max_length"
                )
    return found


@contextmanager
def _padded_to(tokenizer: Any, length: int) -> Iterator[None]:
    """Inside, the tokenizer pads and cuts to ``length``, which it does to its own."""
    own = tokenizer.model_max_length
    tokenizer.model_max_length = length
    try:
        yield
    finally:
        tokenizer.model_max_length = own


def _check_lengths(pipeline: Any, tokenizer: Any, most: int, prompts: Sequence[str]) -> None:
    """InputError for a prompt of more than ``most`` tokens; a learned word of several vectors counts as so many."""
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    spoken = list(prompts) if convert is None else convert(list(prompts), tokenizer)
    for prompt, ids in zip(prompts, tokenizer(spoken, truncation=False).input_ids, strict=True):
        if len(ids) > most:
            raise InputError(f"the prompt {prompt[:60]!r} has {len(ids)} tokens, the text encoder takes {most}: shorten it")
