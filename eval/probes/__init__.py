"""What is tried against an erased model. A new probe is a class and a line in `PROBES`."""

from __future__ import annotations

from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.probes.pseudo_word import PseudoWordProbe
from semu_diffusion.eval.probes.revival import RevivalProbe

__all__ = ["PROBES"]

PROBES: dict[str, type[RevivalProbe]] = {probe.name: probe for probe in (ClassVectorProbe, PseudoWordProbe)}
