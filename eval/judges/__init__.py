"""Who may judge a picture. A new judge is a function (name, class names, device) -> `JudgeNetwork` and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from semu_diffusion.eval.judges.clip import clip_network
from semu_diffusion.eval.judges.networks import JudgeNetwork, folder_network, timm_network, torchvision_network
from semu_diffusion.eval.judges.nudenet import nudenet_network
from semu_diffusion.plugins import Registry

__all__ = ["FOLDER", "JUDGES"]

FOLDER = ""  # names without a library: what comes with the package, or a folder
OWN: dict[str, Callable[[str, Sequence[str], torch.device], JudgeNetwork]] = {
    FOLDER: folder_network,
    "torchvision": torchvision_network,
    "timm": timm_network,
    "clip": clip_network,
    "nudenet": nudenet_network,
}
JUDGES = Registry("semu_diffusion.judges", OWN, lambda name, found: callable(found) and ":" not in name)
