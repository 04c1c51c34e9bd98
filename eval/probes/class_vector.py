r"""How deep an erasure goes: what one learned class vector brings back.

With the erased model frozen, a vector v in place of a row of the class embedding is learned on images of
the erased class, from the null class's vector, by Adam, without guidance:

    min_v  E || eps - eps(x_t, t, v) ||^2        (v-prediction and x_0-prediction models: their own target)

Then images are sampled with it, guided against the null class. *Revival* is the share of them that the judge
calls the erased class. A model that only forgot the label revives fully.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.models.ddpm import ClassConditional

__all__ = ["Revival", "WithVector", "injected_class", "learn_class_vector", "revival"]

_ENDS = 10  # steps that loss_start and loss_end are means of: one step's loss says more about its timesteps


@dataclass(frozen=True)
class Revival:
    """``share`` of ``samples`` images brought back, and the protocol that found it.

    ``loss_start`` and ``loss_end`` are means over the first and last steps of learning; ``training_images``
    says from how many images was learned.
    """

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


class WithVector(nn.Module):
    """A class embedding with one more row, which is a vector of its own."""

    def __init__(self, embedding: nn.Embedding, vector: torch.Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        self.vector = vector  # no Parameter: it must not join the model's own

    @property
    def weight(self) -> torch.Tensor:
        """The rows of the embedding proper, which the model's adapter reads."""
        return self.embedding.weight

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        extra = labels == self.embedding.num_embeddings
        rows = self.embedding(labels.masked_fill(extra, 0))
        return torch.where(extra[..., None], self.vector.to(rows.dtype), rows)


@contextmanager
def injected_class(model: ClassConditional, vector: torch.Tensor) -> Iterator[int]:
    """Inside, the yielded label stands for the class vector ``vector`` (D,); all other labels are as before.

    Gradients flow to ``vector`` alone. On leaving, also by an exception, the model is as it was: embedding,
    ``requires_grad``, ``.grad`` and the mode of every module.
    """
    denoiser: Any = model.denoiser
    embedding = denoiser.class_embedding
    modes = [(module, module.training) for module in denoiser.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    try:
        denoiser.class_embedding = WithVector(embedding, vector)
        denoiser.eval().requires_grad_(False)
        yield embedding.num_embeddings
    finally:
        denoiser.class_embedding = embedding
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def learn_class_vector(
    model: ClassConditional,
    images: torch.Tensor,
    forget: int,
    *,
    steps: int = 150,
    lr: float = 3e-2,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> tuple[torch.Tensor, list[float]]:
    """The class vector (D,) under which the frozen model denoises ``images`` best, and each step's loss.

    ``images`` (N, C, H, W) in [-1, 1]; batches, timesteps and noise are drawn with ``seed``. Starts from the
    null class's vector, or from the mean of the rows other than ``forget`` if there is no null class.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = _start(model, forget).requires_grad_(True)
    optimizer = torch.optim.Adam([vector], lr=lr)
    losses: list[float] = []
    bar = tqdm(range(steps), desc="learning a class vector", leave=False, disable=not _shown(progress))
    with injected_class(model, vector) as label, torch.enable_grad():
        for _ in bar:
            chosen = torch.randint(len(images), (batch_size,), generator=generator)
            t = torch.randint(model.num_timesteps, (batch_size,), generator=generator)
            noise = torch.randn(batch_size, *images.shape[1:], generator=generator)
            loss = _denoising_loss(model, images[chosen], noise, t, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return vector.detach(), losses


def revival(
    model: ClassConditional,
    images: torch.Tensor,
    judge: Judge,
    forget: int,
    *,
    steps: int = 150,
    lr: float = 3e-2,
    batch_size: int = 32,
    samples: int = 60,
    sampling_steps: int = 50,
    guidance_scale: float = 3.0,
    seed: int = 0,
    sample_batch_size: int = 64,
    progress: bool = False,
) -> Revival | None:
    """Share of samples that one class vector, learned for the erased class ``forget``, brings back.

    ``images`` (N, C, H, W) in [-1, 1] are images of that class, real or the original's; sample i comes from seed ``seed + i``.
    None for a model without class embeddings, where there is no vector to learn. The model is left exactly as
    it was.

    Raises InputError for images of another shape, none at all, or a class the judge does not know.
    """
    denoiser: Any = model.denoiser
    if not isinstance(denoiser.class_embedding, nn.Embedding):
        return None
    if images.ndim != 4 or len(images) == 0 or tuple(images.shape[1:]) != model.image_shape:
        raise InputError(f"revival needs images (N, {model.image_shape}), N > 0, not {tuple(images.shape)}")
    if judge.class_names[forget] in judge.unjudged:
        raise InputError(f"the judge {judge.name} knows no class like {judge.class_names[forget]!r}")
    if min(steps, batch_size, samples) < 1:
        raise InputError("revival needs at least one step, one image in a batch and one sample")
    vector, losses = learn_class_vector(
        model, images, forget, steps=steps, lr=lr, batch_size=batch_size, seed=seed, progress=progress
    )
    scale = 1.0 if model.null is None else guidance_scale
    with injected_class(model, vector) as label:
        labels, seeds = [label] * samples, range(seed, seed + samples)
        predictions = []
        with tqdm(total=samples, desc="reviving", leave=False, disable=not _shown(progress)) as bar:
            for batch in model.sample(labels, seeds, sampling_steps, scale, sample_batch_size):
                predictions.append(judge.predict(batch))
                bar.update(len(batch))
    return Revival(
        share=float((torch.cat(predictions) == forget).double().mean()),
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        samples=samples,
        sampling_steps=sampling_steps,
        guidance_scale=scale,
        seed=seed,
        training_images=len(images),
        loss_start=sum(losses[:_ENDS]) / len(losses[:_ENDS]),
        loss_end=sum(losses[-_ENDS:]) / len(losses[-_ENDS:]),
    )


def _shown(progress: bool) -> bool:
    return progress and sys.stderr.isatty()


def _start(model: ClassConditional, forget: int) -> torch.Tensor:
    denoiser: Any = model.denoiser
    rows = denoiser.class_embedding.weight.detach().float()
    if model.null is not None:
        return rows[model.null].clone()
    kept = [index for index in range(len(rows)) if index != forget]
    return rows[kept].mean(dim=0)


def _denoising_loss(
    model: ClassConditional, images: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, label: int
) -> torch.Tensor:
    denoiser: Any = model.denoiser
    where = {"device": denoiser.device, "dtype": denoiser.dtype}
    clean, noise, t = images.to(**where), noise.to(**where), t.to(denoiser.device)
    labels = torch.full((len(clean),), label, device=denoiser.device)
    prediction = model.predict(model.add_noise(clean, noise, t), t, labels)
    return (prediction.float() - model.training_target(clean, noise, t).float()).square().mean()
