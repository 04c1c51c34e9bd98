"""Revival of a concept by a pseudo-word (textual inversion, Gal et al. 2022, eq. 2).

The token embedding of a word that does not exist is learned in the sentences that named the concept ("a photo of a *"), at a
learning rate in units of the token embeddings' root mean square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from semu_diffusion.errors import InputError
from semu_diffusion.eval.probes.probe import Shown, frozen
from semu_diffusion.eval.probes.revival import Attached, Learning, RevivalProbe, WithVectors
from semu_diffusion.models.stable_diffusion import TextConditional, on_device

__all__ = ["PseudoWordProbe"]

PLACE = "{}"
Spoken = tuple[int, str]  # which vector, in which sentence


class PseudoWordProbe(RevivalProbe):
    """Learns words under which the model denoises images of an erased concept best; not for two text encoders (SDXL)."""

    name = "pseudo-word"
    default = Learning()

    @staticmethod
    def applies(model: Any) -> bool:
        return isinstance(model, TextConditional) and model.table.pooled is None

    def start(self, model: Any, shown: Shown, generator: torch.Generator) -> tuple[torch.Tensor, float]:
        """The mean of all token embeddings, then those of tokens that the generator picks."""
        rows = model.pipeline.text_encoder.get_input_embeddings().weight.detach().float()
        picked = rows[torch.randperm(len(rows), generator=generator)[: self.how.restarts - 1].to(rows.device)]
        return torch.cat([rows.mean(0, keepdim=True), picked]), float(rows.square().mean().sqrt())

    @contextmanager
    def attached(self, model: Any, shown: Shown, vectors: torch.Tensor) -> Iterator[Attached]:
        sentences, count = shown.sentences, len(shown.images(model))
        if len(sentences) != count or any(sentence.count(PLACE) != 1 for sentence in sentences):
            raise InputError("revival needs images of the concept, and for each a sentence with one {} in it")
        how, spoken, encoder = self.how, list(dict.fromkeys(sentences)), model.pipeline.text_encoder
        with on_device(encoder, model.device), frozen(encoder, model.denoiser), _injected_words(model, vectors) as encode:

            def condition(restarts: list[int], chosen: list[int]) -> torch.Tensor:
                said = [(restart, sentences[index]) for restart, index in zip(restarts, chosen, strict=True)]
                different = list(dict.fromkeys(said))  # each sentence of a restart is encoded once
                place = {pair: number for number, pair in enumerate(different)}
                return encode(different).to(model.device).flatten(1)[[place[pair] for pair in said]]

            def sample(restarts: Sequence[int], seeds: Sequence[int]) -> Iterator[torch.Tensor]:
                said = [(restart, spoken[index % len(spoken)]) for index, restart in enumerate(restarts)]
                different = list(dict.fromkeys(said))
                with torch.no_grad():
                    taught = model.with_rows([f"{sentence} [learned {r}]" for r, sentence in different], encode(different))
                rows = [len(model.names) + different.index(pair) for pair in said]
                yield from taught.sample(rows, seeds, how.sampling_steps, how.guidance_scale)

            yield Attached(condition, sample)


@contextmanager
def _injected_words(model: TextConditional, vectors: torch.Tensor) -> Iterator[Callable[[Sequence[Spoken]], torch.Tensor]]:
    """Inside, a function of (restart, sentence with ``{}``) that gives their embeddings (N, T, D) with the vector there."""
    encoder, tokenizer = model.pipeline.text_encoder, model.pipeline.tokenizer
    embedding = encoder.get_input_embeddings()

    def encode(spoken: Sequence[Spoken]) -> torch.Tensor:
        ids = [_tokens(tokenizer, sentence, embedding.num_embeddings + restart) for restart, sentence in spoken]
        return encoder(torch.tensor(ids).to(encoder.device))[0].float()

    try:
        encoder.set_input_embeddings(WithVectors(embedding, vectors).eval())
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
