r"""Fréchet distance between two sets of features, and the extractors the features come from.

  FID = ||mu_a - mu_b||^2 + Tr(S_a + S_b - 2 (S_a S_b)^{1/2})    (Heusel et al. 2017; by torchmetrics)

Inception v3 and its resizing are torch-fidelity's, as the original TensorFlow graph does it, which is what published numbers
use. Pictures are rounded to 8 bits first. FID from few images is biased upward and
only comparable at equal counts: fewer than 10,000 raise a `SmallSampleWarning`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from semu_diffusion.errors import InputError, reason
from semu_diffusion.eval.images import in_chunks, to_uint8, with_channels
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.judges.networks import file_digest
from semu_diffusion.eval.results import Network
from semu_diffusion.files import tensors_only

__all__ = ["FeatureExtractor", "SmallSampleWarning", "check_features", "frechet_distance", "load_fid_extractor"]

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_INCEPTION = "inception-v3-compat"  # torch-fidelity's name of the network with TensorFlow's original weights
_PUBLISHED_HASH = "6726825d"  # first digits of the published file's SHA-256, as its name says
_CHUNK = 16
MIN_SAMPLES = 10_000


class SmallSampleWarning(UserWarning):
    """A metric was computed from fewer images than its usual protocol asks for."""


@dataclass(frozen=True)
class FeatureExtractor:
    """Images to the features FID compares. ``name`` says which they are, wherever a FID is written down."""

    name: str
    dim: int
    sha256: str
    features: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(N, dim) float32 on the CPU, of images (N, C, H, W), uint8 or floats in [0, 1] (rounded here)."""
        return self.features(to_uint8(images))

    @property
    def network(self) -> Network:
        return Network(self.name, self.sha256, self.dim)


class _Given(nn.Module):
    """The "network" of torchmetrics' FID when the features are there already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet_distance(features_a: torch.Tensor, features_b: torch.Tensor, warn_below: int = MIN_SAMPLES) -> float:
    """FID of feature matrices (N, D) and (M, D), in float64; covariances divide by N - 1 and M - 1.

    Raises InputError for widths that differ, fewer than two rows, or features that are not finite. Warns
    (`SmallSampleWarning`) if either has fewer than ``warn_below`` rows.
    """
    check_features("FID", features_a, features_b)
    fewest = min(len(features_a), len(features_b))
    if fewest < warn_below:
        few = f"FID from {fewest:,} images (fewer than {warn_below:,})"
        message = f"{few} is biased upward; compare at equal counts only"
        warnings.warn(message, SmallSampleWarning, stacklevel=2)
    metric = FrechetInceptionDistance(feature=_Given(features_a.shape[1]))
    metric.update(features_a.detach().cpu().double(), real=True)
    metric.update(features_b.detach().cpu().double(), real=False)
    return max(0.0, float(metric.compute()))  # equal sets come out at rounding error, either side of zero


def check_features(metric: str, features_a: torch.Tensor, features_b: torch.Tensor) -> None:
    """InputError unless both are finite matrices of one width with two rows and more."""
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        raise InputError(f"{metric} needs feature matrices of one width, not {shapes}")
    if min(len(features_a), len(features_b)) < 2:
        raise InputError(f"{metric} needs at least two images on each side")
    if not (torch.isfinite(features_a).all() and torch.isfinite(features_b).all()):
        raise InputError(f"{metric} needs finite features; the images or the extractor are broken")


def load_fid_extractor(
    inception_weights: str | Path | None = None,
    fallback: Judge | None = None,
    *,
    download: bool = False,
    device: str | torch.device = "cpu",
) -> FeatureExtractor | None:
    """The extractor for FID: Inception v3 (2048-d) if its weights are at hand, else the judge's features.

    Inception's weights are ``inception_weights`` (a .pth file), else the published file in torch.hub's folder
    of checkpoints, else, with ``download``, fetched to there. Without any the judge ``fallback`` serves, and
    the name of the extractor says so; None if there is no judge either. The global random state stays as it
    is.

    Raises InputError if a given file is missing or holds no such weights, or if the download fails.
    """
    published = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if inception_weights is not None:
        return _inception(Path(inception_weights).expanduser(), torch.device(device))
    if download and not published.is_file():
        _download(published)
    if published.is_file():
        return _inception(published, torch.device(device))
    if fallback is None:
        return None
    name = f"{fallback.name} features ({fallback.dim}-d)"
    return FeatureExtractor(name, fallback.dim, fallback.sha256, fallback.features)


def _inception(path: Path, device: torch.device) -> FeatureExtractor:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        with tensors_only(), torch.random.fork_rng(devices=[]):
            network = FeatureExtractorInceptionV3(_INCEPTION, ["2048"], str(path))
    except Exception as error:  # no such file, a pickle with code in it, other weights
        raise InputError(f"{path} does not hold torch-fidelity's Inception v3 weights ({reason(error, 160)})") from error
    network = network.to(device)
    digest = file_digest(path)
    other = "" if digest.startswith(_PUBLISHED_HASH) else ", other weights than the published"

    def features(images: torch.Tensor) -> torch.Tensor:
        return in_chunks(lambda chunk: network(with_channels(chunk.to(device), 3))[0], images, _CHUNK)

    return FeatureExtractor(f"{_INCEPTION} (2048-d{other})", 2048, digest, features)


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        bar = sys.stderr.isatty()
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), _PUBLISHED_HASH, progress=bar)
    except (OSError, RuntimeError) as error:
        raise InputError(f"downloading Inception's weights from {INCEPTION_URL} failed ({reason(error, 160)})") from error
