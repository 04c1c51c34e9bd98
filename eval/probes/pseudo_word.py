"""Revival of a concept by a pseudo-word (textual inversion, Gal et al. 2022, eq. 2).

The token embedding of a word that does not exist is learned in the sentences that named the concept ("a photo of a *"), from
the mean of all token embeddings, at a learning rate in units of their root mean square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.probes.revival import Attached, Learning, RevivalProbe, Shown, WithVector, frozen
from semu_diffusion.models.stable_diffusion import TextConditional, on_device

__all__ = ["PseudoWordProbe"]

PLACE = "{}"


class PseudoWordProbe(RevivalProbe):
    """Learns a word under which the model denoises images of an erased concept best; not for two text encoders (SDXL)."""

    name = "pseudo-word"
    default = Learning(steps=200, lr=0.3, batch_size=16, sampling_steps=25)

    @staticmethod
    def applies(model: Any) -> bool:
        return isinstance(model, TextConditional) and model.table.pooled is None

    def start(self, model: Any, shown: Shown) -> tuple[torch.Tensor, float]:
        rows = model.pipeline.text_encoder.get_input_embeddings().weight.detach().float()
        return rows.mean(0), float(rows.square().mean().sqrt())

    @contextmanager
    def attached(self, model: Any, shown: Shown, vector: torch.Tensor) -> Iterator[Attached]:
        sentences = shown.sentences
        if len(sentences) != len(shown.clean) or any(sentence.count(PLACE) != 1 for sentence in sentences):
            raise InputError("revival needs images of the concept, and for each a sentence with one {} in it")
        how, spoken, encoder = self.learning, list(dict.fromkeys(sentences)), model.pipeline.text_encoder
        with on_device(encoder, model.device), frozen(encoder, model.denoiser), _injected_word(model, vector) as encode:

            def condition(chosen: list[int]) -> torch.Tensor:
                return encode([sentences[index] for index in chosen]).to(model.device).flatten(1)

            def sample(seeds: Sequence[int]) -> Iterator[torch.Tensor]:
                with torch.no_grad():
                    taught = model.with_rows([f"{sentence} [learned]" for sentence in spoken], encode(spoken))
                rows = [len(model.names) + index % len(spoken) for index in range(len(seeds))]
                yield from taught.sample(rows, seeds, how.sampling_steps, how.guidance_scale, how.sample_batch_size)

            yield Attached(condition, sample)


@contextmanager
def _injected_word(model: TextConditional, vector: torch.Tensor) -> Iterator[Callable[[Sequence[str]], torch.Tensor]]:
    """Inside, a function of sentences with ``{}`` that gives their embeddings (N, T, D) with ``vector`` in that place."""
    encoder, tokenizer = model.pipeline.text_encoder, model.pipeline.tokenizer
    embedding = encoder.get_input_embeddings()

    def encode(sentences: Sequence[str]) -> torch.Tensor:
        ids = torch.tensor([_tokens(tokenizer, sentence, embedding.num_embeddings) for sentence in sentences])
        return encoder(ids.to(encoder.device))[0].float()

    try:
        encoder.set_input_embeddings(WithVector(embedding, vector).eval())
        yield encode
    finally:
        encoder.set_input_embeddings(embedding)


def _tokens(tokenizer: Any, sentence: str, learned: int) -> list[int]:
    before, after = (tokenizer(part).input_ids[1:-1] for part in sentence.split(PLACE))
    longest = tokenizer.model_max_length
    ids = [tokenizer.bos_token_id, *before, learned, *after, tokenizer.eos_token_id]
    if len(ids) > longest:
        raise InputError(f"the sentence {sentence!r} has {len(ids)} tokens, the text encoder takes {longest}")
    return ids + [tokenizer.pad_token_id] * (longest - len(ids))
