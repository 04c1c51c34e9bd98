"""Prompts as the rows of a table: encoded once, so that the text encoders may leave the device."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from semu_diffusion.errors import InputError, Notice
from semu_diffusion.models.guards import check_tokenizer, refusing, require_finite
from semu_diffusion.patches.modes import evaluating

__all__ = [
    "ENCODERS",
    "PromptTable",
    "Text",
    "TextFamily",
    "encode_prompts",
    "encode_texts",
    "in_chat",
    "on_device",
    "text_encoders",
    "token_limits",
    "tokenizer_of",
]

ENCODERS = ("", "_2", "_3")  # endings of text_encoder and tokenizer in a pipeline
LONGEST = 100_000  # transformers gives 10^30 for a length that is not known


@dataclass(frozen=True)
class Text:
    """What a network is told of N prompts: ``embeddings`` (N, T, D) of their tokens, ``pooled`` (N, E) of each as a whole, and
    the ``mask`` (N, T), 1 for a token that counts; None where the family has no such thing."""

    embeddings: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def apply(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Text:
        """The same with every tensor changed."""
        pooled, mask = (None if one is None else change(one) for one in (self.pooled, self.mask))
        return Text(change(self.embeddings), pooled, mask)

    def vectors(self) -> torch.Tensor:
        """(N, T D + E + T): everything that belongs to a prompt side by side."""
        parts = (self.embeddings.flatten(1), self.pooled, self.mask)
        return torch.cat([part.float() for part in parts if part is not None], dim=1)

    def of_vectors(self, vectors: torch.Tensor) -> Text:
        """Vectors (n, T D + E + T) taken apart again, in this text's shapes."""
        tokens, width = self.embeddings.shape[1:]
        sizes = [tokens * width, 0 if self.pooled is None else self.pooled.shape[1], 0 if self.mask is None else tokens]
        embeddings, pooled, mask = vectors.split(sizes, dim=1)
        return Text(
            embeddings.reshape(-1, tokens, width),
            None if self.pooled is None else pooled,
            None if self.mask is None else (mask > 0.5).to(self.mask),  # a learned vector moves what a token says, not whether
        )


@dataclass(frozen=True, kw_only=True)
class PromptTable(Text):
    """Prompts and what the network is told of them; the last row is the empty prompt. ``time_ids`` (6,) are SDXL's sizes."""

    prompts: tuple[str, ...]
    time_ids: torch.Tensor | None = None

    def rows(self, labels: torch.Tensor) -> Text:
        """Of rows (N,) int64, or of vectors (N, T D + E + T) float."""
        return self.of_vectors(labels) if labels.is_floating_point() else self.apply(lambda one: one[labels])

    def joined(self, prompts: Sequence[str], more: Text) -> PromptTable:
        """The table with more prompts before the empty one."""

        def put(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            return torch.cat([mine[:-1], theirs.to(mine), mine[-1:]])

        def both(mine: torch.Tensor | None, theirs: torch.Tensor | None) -> torch.Tensor | None:
            return None if mine is None or theirs is None else put(mine, theirs)

        return PromptTable(
            put(self.embeddings, more.embeddings),
            both(self.pooled, more.pooled),
            both(self.mask, more.mask),
            prompts=(*self.prompts[:-1], *prompts, ""),
            time_ids=self.time_ids,
        )

    def replaced(self, text: Text) -> PromptTable:
        """The same prompts, told as ``text``."""
        return dataclasses.replace(self, embeddings=text.embeddings, pooled=text.pooled, mask=text.mask)


class TextFamily(Protocol):
    """What is asked of a family's adapter to encode prompts."""

    part: ClassVar[str]  # the pipeline's name of the network

    @classmethod
    def encode_text(cls, pipeline: Any, prompts: list[str]) -> Text:
        """What the pipeline's network is told of the prompts, by the pipeline's own text encoders, on the network's device."""
        ...

    @classmethod
    def spoken(cls, pipeline: Any, prompts: list[str]) -> list[str]:
        """The texts that the tokenizers get: the prompts, or these within what the pipeline says around them."""
        ...

    @classmethod
    def time_ids(cls, pipeline: Any) -> torch.Tensor | None:
        """SDXL's sizes, None for others."""
        ...

    @classmethod
    def max_tokens(cls, pipeline: Any, ending: str) -> int | None:
        """Tokens that this encoder is given at most; None: as many as it can take."""
        ...


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


def encode_texts(family: type[TextFamily], pipeline: Any, prompts: Sequence[str], batch_size: int) -> Text:
    """What the network is told of the prompts, float32; gradients flow to the text encoders.

    Prompts are encoded ``batch_size`` at a time, the last batch filled up, so that no embedding depends on the others.

    Raises InputError, naming the prompt, if one is longer than a text encoder takes: it would be cut silently.
    """
    limits = token_limits(family, pipeline)
    for tokenizer, most in limits:
        _check_lengths(family, pipeline, tokenizer, most, prompts)
    texts: list[Text] = []
    device = getattr(pipeline, family.part).device
    with ExitStack() as stack:
        for tokenizer, most in limits:
            stack.enter_context(_padded_to(tokenizer, most))
        for encoder in text_encoders(pipeline).values():
            stack.enter_context(on_device(encoder, device))
            stack.enter_context(evaluating(encoder))
        for start in range(0, len(prompts), batch_size):
            part = list(prompts[start : start + batch_size])
            texts.append(family.encode_text(pipeline, part + [""] * (batch_size - len(part))))

    def joined(name: str) -> Any:
        parts = [getattr(text, name) for text in texts]
        return None if parts[0] is None else torch.cat(parts)[: len(prompts)].float()

    return Text(joined("embeddings"), joined("pooled"), joined("mask"))


def tokenizer_of(pipeline: Any, ending: str = "") -> Any:
    """The pipeline's tokenizer of this ending, also one inside a processor that takes pictures, too; None without one."""
    found = getattr(pipeline, f"tokenizer{ending}", None)
    return getattr(found, "tokenizer", found)


def in_chat(tokenizer: Any, prompts: Sequence[str], **options: Any) -> list[str]:
    """Each prompt as what a user says to a language model that is about to answer."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options) for chat in chats]


def text_encoders(pipeline: Any) -> dict[str, Any]:
    """The pipeline's text encoders by the endings of their names."""
    found = {ending: getattr(pipeline, f"text_encoder{ending}", None) for ending in ENCODERS}
    return {ending: encoder for ending, encoder in found.items() if encoder is not None}


@refusing("the tokenizer and the text encoder do not encode")
@torch.no_grad()
def encode_prompts(family: type[TextFamily], pipeline: Any, prompts: Sequence[str], batch_size: int = 32) -> PromptTable:
    """The table of the prompts, in order and once each, and the empty prompt as its last row; as `encode_texts`."""
    for ending, encoder in text_encoders(pipeline).items():
        if (tokenizer := tokenizer_of(pipeline, ending)) is not None:
            check_tokenizer(tokenizer, encoder)
    wanted = (*dict.fromkeys(prompt for prompt in prompts if prompt.strip()), "")
    text = encode_texts(family, pipeline, wanted, batch_size)
    require_finite(text.vectors())
    return PromptTable(text.embeddings, text.pooled, text.mask, prompts=wanted, time_ids=family.time_ids(pipeline))


def token_limits(family: type[TextFamily], pipeline: Any) -> list[tuple[Any, int]]:
    """Each tokenizer, and how many tokens its encoder takes: a copied folder may not say it, the encoder's positions do."""
    found = []
    for ending, encoder in text_encoders(pipeline).items():
        tokenizer = tokenizer_of(pipeline, ending)
        if tokenizer is not None:
            positions = getattr(encoder.config, "max_position_embeddings", None) or tokenizer.model_max_length
            given = family.max_tokens(pipeline, ending)
            most = int(min(tokenizer.model_max_length, positions)) if given is None else given
            if most > LONGEST:
                raise InputError(
                    "neither the tokenizer nor the text encoder says how many tokens it takes: set model_max_length"
                )
            found.append((tokenizer, most))
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


def _check_lengths(family: type[TextFamily], pipeline: Any, tokenizer: Any, most: int, prompts: Sequence[str]) -> None:
    """InputError for a prompt of more than ``most`` tokens; a learned word of several vectors counts as so many."""
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    spoken = family.spoken(pipeline, list(prompts) if convert is None else convert(list(prompts), tokenizer))
    unknown, unspelled = getattr(tokenizer, "unk_token_id", None), []
    for prompt, ids in zip(prompts, tokenizer(spoken, truncation=False, verbose=False).input_ids, strict=True):
        if unknown in ids and unknown != tokenizer.eos_token_id:  # CLIP spells any letters out, and calls its end unknown
            unspelled.append(prompt)
        if len(ids) > most:
            raise InputError(f"the prompt {prompt[:60]!r} has {len(ids)} tokens, the text encoder takes {most}: shorten it")
    if unspelled:
        more = f" (and {len(unspelled) - 1} more)" if unspelled[1:] else ""
        warnings.warn(
            f"{unspelled[0][:60]!r}{more}: the tokenizer {type(tokenizer).__name__} has no letters for a part of it, which for "
            "the text encoder is as any other such word: erased or kept with all of them",
            Notice,
            stacklevel=2,
        )
