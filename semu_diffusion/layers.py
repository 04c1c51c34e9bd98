"""Which layers of a network are edited: Linear and Conv2d, chosen by kind or by name pattern."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from semu_diffusion.errors import InputError
from semu_diffusion.patches.weights import fused_copies

__all__ = ["KINDS", "layer_words", "select_layers"]

KINDS = ("all", "linear", "conv", "attention", "cross-attention")


def select_layers(model: nn.Module, patterns: Sequence[str] = ("all",)) -> dict[str, nn.Linear | nn.Conv2d]:
    """Name -> module of every Linear and Conv2d that some pattern takes and no ``!pattern`` leaves out.

    A pattern is a kind (``all``, ``linear``, ``conv``, ``attention``: part of an attention block, ``cross-attention``: of one
    that looks at the text, ``attn2`` as diffusers names it) or a shell-style glob over the module path (``mid_block.*``,
    ``*.to_k``). A weight that two modules share is taken once. Layers whose weight
    is not simply multiplied with their input are left alone, an edit would not mean the same there: subclasses with a
    forward of their own, parametrised weights, and the output projection inside nn.MultiheadAttention.

    Raises InputError if nothing is selected, and for a pattern that is neither a kind nor a layer here; one with ``*`` may
    leave out what is not there.
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns  # one pattern is no list of letters
    taken = [pattern for pattern in patterns if not pattern.startswith("!")] or ["all"]
    left_out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    layers: dict[str, nn.Linear | nn.Conv2d] = {}
    seen: set[int] = set()
    candidates: list[str] = []
    copies = fused_copies(dict(model.named_modules()))
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or not _is_plain(module) or name in copies:
            continue
        candidates.append(name)
        if id(module.weight) in seen or not any(_matches(name, module, pattern) for pattern in taken):
            continue
        if any(_matches(name, module, pattern) for pattern in left_out):
            continue
        seen.add(id(module.weight))
        layers[name] = module
    named = {pattern for pattern in taken if pattern not in KINDS}
    named |= {pattern for pattern in left_out if pattern not in KINDS and "*" not in pattern}
    unknown = [pattern for pattern in sorted(named) if not any(fnmatchcase(name, pattern) for name in candidates)]
    if not layers or unknown:
        examples = ", ".join(candidates[:3]) or "none"
        raise InputError(
            f"no Linear or Conv2d layer matches {' '.join(unknown or patterns)}; use {', '.join(KINDS)} or a glob "
            f"(layers here: {examples}, …)"
        )
    return layers


def layer_words(names: Iterable[str]) -> str:
    """The layers by the ends of their names, after the last number, and how many of each: ``attn.to_q 24, conv1 12``."""
    ends = (re.sub(r"(\.\d+)+$", "", name) for name in names)
    counts = Counter(re.sub(r"^.*\.\d+\.", "", end) for end in ends)
    return ", ".join(f"{end} {count}" for end, count in counts.items())


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, NonDynamicallyQuantizableLinear):  # MultiheadAttention reads its weight and never calls it
        return False
    return type(module).forward in (nn.Linear.forward, nn.Conv2d.forward) and "weight" in module._parameters


def _matches(name: str, module: nn.Module, pattern: str) -> bool:
    if pattern == "all":
        return True
    if pattern == "linear":
        return isinstance(module, nn.Linear)
    if pattern == "conv":
        return isinstance(module, nn.Conv2d)
    if pattern == "attention":
        return any("attn" in part or "attention" in part for part in name.split("."))
    if pattern == "cross-attention":
        return "attn2" in name.split(".")
    return fnmatchcase(name, pattern)
