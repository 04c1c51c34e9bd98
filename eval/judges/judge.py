"""The judge: an independent classifier of generated images, whose features also serve beside Inception's.

What happens to an image before a judge sees it: it is rounded to 8 bits (a judge sees what a saved picture
shows); a grey image is repeated for an RGB judge, an RGB image becomes luminance (ITU-R BT.601) for a grey
one; our own classifier gets it resized to the size it was trained on (bilinear, antialiased), the others get
their own published transform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from semu_diffusion.eval.images import in_chunks, to_float, to_uint8, with_channels
from semu_diffusion.eval.judges import FOLDER, JUDGES
from semu_diffusion.eval.judges.class_mapping import ClassMapping, map_classes, read_mapping
from semu_diffusion.eval.judges.networks import JudgeNetwork

__all__ = ["Judge", "load_judge"]


@dataclass(frozen=True)
class Judge:
    """A classifier that answers in the classes of the model under test, ``class_names``."""

    network: JudgeNetwork
    class_names: tuple[str, ...]
    mapping: ClassMapping
    device: torch.device

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def sha256(self) -> str:
        """Of the weights: of their file, or of the bytes of the state dict."""
        return self.network.sha256

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.network.dim

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Classes of the model that the judge has no class for."""
        return self.mapping.unjudged

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Index into ``class_names`` for each image, (N,) int64; -1 if the judge's class has no counterpart.

        Images are (N, C, H, W), floats in [0, 1] or uint8. The images beside it do not change a prediction.
        """
        return self.verdicts(images)[0]

    def verdicts(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions as of `predict`, and the shares (N, K + 1) that the judge gives each of ``class_names`` and, last, none.

        A share is the sum of the softmax over the judge's classes that stand for the model's.
        """
        logits, targets = self._run(self.network.logits, images), self.mapping.targets
        shares = torch.zeros(len(logits), len(self.class_names) + 1)
        shares.index_add_(1, targets.remainder(shares.shape[1]), logits.softmax(dim=1))  # -1 is the last column
        return targets[logits.argmax(dim=1)], shares

    def sees(self, images: torch.Tensor, name: str) -> torch.Tensor:
        """True (N,) where the judge sees the class ``name`` of ``class_names``."""
        return self.predict(images) == self.class_names.index(name)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features before the last layer, (N, dim) float32 on the CPU, of images as for `predict`."""
        return self._run(self.network.features, images)

    def _run(self, network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        def step(chunk: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, enabled=False):  # a judge is the same under any sampler
                return network(with_channels(to_float(chunk.to(self.device)), self.network.channels))

        return in_chunks(step, to_uint8(images), self.network.chunk)


def load_judge(
    name_or_folder: str | Path,
    class_names: Sequence[str],
    device: str | torch.device = "cpu",
    class_mapping: str | Path | Mapping[str, Sequence[str | int]] | None = None,
) -> Judge:
    """The judge for a model with these classes.

    ``name_or_folder``: ``embedded`` (or ``cifar10``, ``styles``), ``torchvision:NAME``, ``timm:NAME``, ``clip`` or
    ``clip:MODEL:TAG``, or a folder of our own classifier. ``class_mapping``: a JSON file or a mapping
    {model class: [judge class, ...]}; classes it does not list are matched by name. A classifier without names, of as many
    classes, is matched by index. The global random state stays as it is.

    Raises InputError for an unknown name, weights that are not available, no class in common, a mapping that does not fit.
    """
    names = tuple(class_names)
    library, _, name = str(name_or_folder).partition(":")
    make = JUDGES.get(library, JUDGES[FOLDER]) if library else JUDGES[FOLDER]
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        network = make(str(name_or_folder) if make is JUDGES[FOLDER] else name, names, torch.device(device))
    listed = read_mapping(class_mapping) if isinstance(class_mapping, str | Path) else class_mapping
    categories = network.categories
    if not categories:
        same = network.classes == len(names) and not listed
        categories = names if same else tuple(str(index) for index in range(network.classes))
    return Judge(network, names, map_classes(network.name, categories, names, listed), torch.device(device))
