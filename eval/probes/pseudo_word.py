r"""How deep the erasure of a concept goes: what one learned pseudo-word brings back (textual inversion).

With the erased model frozen, the token embedding v of a word that does not exist is learned on images of the concept, in the
sentences that named it ("a photo of a *"), by Adam, without guidance (Gal et al. 2022, eq. 2):

    min_v  E || eps - eps(x_t, t, tau(sentence with v)) ||^2        (v-prediction models: their own target)

It starts from the mean of all token embeddings, at a learning rate given in units of their root mean square. Then images
are sampled of the same sentences, with guidance against the empty prompt. *Revival* is the share of them in which the judge
sees the concept. A model that only forgot the word revives fully.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm

from semu_diffusion.errors import InputError
from semu_diffusion.eval.probes.class_vector import WithVector
from semu_diffusion.models.stable_diffusion import TextConditional, on_device

__all__ = ["TextRevival", "learn_pseudo_word", "text_revival"]

PLACE = "{}"


class Sees(Protocol):
    """A judge: index of the class it sees in each image, (N,) int64."""

    def predict(self, images: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class TextRevival:
    """``share`` of ``samples`` images brought back, and the protocol that found it."""

    share: float
    steps: int
    lr: float
    batch_size: int
    samples: int
    sampling_steps: int
    guidance_scale: float
    seed: int
    training_images: int
    loss_start: float
    loss_end: float


def text_revival(
    model: TextConditional,
    latents: torch.Tensor,
    sentences: Sequence[str],
    judge: Sees,
    wanted: int,
    *,
    steps: int = 200,
    lr: float = 0.3,
    batch_size: int = 16,
    samples: int = 60,
    sampling_steps: int = 25,
    guidance_scale: float = 3.0,
    seed: int = 0,
    progress: bool = False,
) -> TextRevival | None:
    """Share of samples in which ``judge`` sees class ``wanted`` after one pseudo-word was learned from ``latents``.

    ``latents`` (N, C, h, w) show the concept; ``sentences[i]`` says latent i, with ``{}`` for the pseudo-word. Sample i
    comes from seed ``seed + i``. None for a model of two text encoders (SDXL), for which it is not implemented.
    Raises InputError for a sentence without a place, or counts that differ.
    """
    if model.table.pooled is not None:
        return None
    if len(sentences) != len(latents) or len(latents) == 0 or not all(sentence.count(PLACE) == 1 for sentence in sentences):
        raise InputError("revival needs images of the concept, and for each a sentence with one {} in it")
    vector, losses = learn_pseudo_word(
        model, latents, sentences, steps=steps, lr=lr, batch_size=batch_size, seed=seed, progress=progress
    )
    spoken = list(dict.fromkeys(sentences))
    encoder = model.pipeline.text_encoder
    with on_device(encoder, model.device), _injected(model, vector) as encode, torch.no_grad():
        told = model.with_rows([f"{sentence} [learned]" for sentence in spoken], encode(spoken))
    rows = [len(model.names) + index % len(spoken) for index in range(samples)]
    seen = []
    with tqdm(total=samples, desc="reviving", leave=False, disable=not _shown(progress)) as bar:
        for batch in told.sample(rows, range(seed, seed + samples), sampling_steps, guidance_scale):
            seen.append(judge.predict(batch))
            bar.update(len(batch))
    ends = max(steps // 10, 1)
    return TextRevival(
        share=float((torch.cat(seen) == wanted).double().mean()),
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        samples=samples,
        sampling_steps=sampling_steps,
        guidance_scale=guidance_scale,
        seed=seed,
        training_images=len(latents),
        loss_start=sum(losses[:ends]) / ends,
        loss_end=sum(losses[-ends:]) / ends,
    )


def learn_pseudo_word(
    model: TextConditional,
    latents: torch.Tensor,
    sentences: Sequence[str],
    *,
    steps: int = 200,
    lr: float = 0.3,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> tuple[torch.Tensor, list[float]]:
    """The token embedding (D,) under which the frozen model denoises ``latents`` best, and the loss of each step."""
    encoder = model.pipeline.text_encoder
    rows = encoder.get_input_embeddings().weight.detach().float()
    generator = torch.Generator().manual_seed(seed)
    vector = rows.mean(0).to(model.device).requires_grad_(True)
    optimizer = torch.optim.Adam([vector], lr=lr * float(rows.square().mean().sqrt()))
    losses: list[float] = []
    bar = tqdm(range(steps), desc="learning a pseudo-word", leave=False, disable=not _shown(progress))
    frozen = _frozen(encoder, model.denoiser)
    with on_device(encoder, model.device), frozen, _injected(model, vector) as encode, torch.enable_grad():
        for _ in bar:
            chosen = torch.randint(len(latents), (batch_size,), generator=generator).tolist()
            t = torch.randint(model.num_timesteps, (batch_size,), generator=generator).to(model.device)
            clean = latents[chosen].to(model.device)
            noise = torch.randn(clean.shape, generator=generator).to(model.device)
            text = encode([sentences[index] for index in chosen]).to(model.device)
            predicted = model.predict(model.add_noise(clean, noise, t), t, text.flatten(1)).float()
            loss = (predicted - model.training_target(clean, noise, t)).square().mean()
            (vector.grad,) = torch.autograd.grad(loss, vector)
            optimizer.step()
            losses.append(float(loss.detach()))
    return vector.detach(), losses


@contextmanager
def _frozen(*networks: torch.nn.Module) -> Iterator[None]:
    """Inside, no weight asks for a gradient: only what leads to the pseudo-word is kept for the backward pass."""
    asked = [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _injected(model: TextConditional, vector: torch.Tensor) -> Iterator[Any]:
    """Inside, a function of sentences with ``{}`` that gives their embeddings (N, T, D) with ``vector`` in that place.

    On leaving, also by an exception, the text encoder is as it was.
    """
    encoder, tokenizer = model.pipeline.text_encoder, model.pipeline.tokenizer
    embedding, training = encoder.get_input_embeddings(), encoder.training
    learned = embedding.num_embeddings

    def encode(sentences: Sequence[str]) -> torch.Tensor:
        ids = torch.tensor([_tokens(tokenizer, sentence, learned) for sentence in sentences], device=encoder.device)
        return encoder(ids)[0].float()

    try:
        encoder.set_input_embeddings(WithVector(embedding, vector))
        yield encode
    finally:
        encoder.set_input_embeddings(embedding)
        encoder.train(training)


def _tokens(tokenizer: Any, sentence: str, learned: int) -> list[int]:
    before, after = (tokenizer(part).input_ids[1:-1] for part in sentence.split(PLACE))
    most = tokenizer.model_max_length
    ids = [tokenizer.bos_token_id, *before, learned, *after, tokenizer.eos_token_id]
    if len(ids) > most:
        raise InputError(f"the sentence {sentence!r} has {len(ids)} tokens, the text encoder takes {most}")
    return ids + [tokenizer.pad_token_id] * (most - len(ids))


def _shown(progress: bool) -> bool:
    return progress and sys.stderr.isatty()
