"""What the classes of a model are called, and which of its embeddings means "no class".

A class-conditional network has E embeddings, one for each class and often one for "no class" (the null class), first or last.
The rest of the package speaks of rows: 0 to N - 1 are the classes in their order, N is the null class.
"""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from semu_diffusion.errors import InputError, Notice
from semu_diffusion.files import is_text
from semu_diffusion.names.letters import fold
from semu_diffusion.names.words import find_name

__all__ = ["NO_NULL", "ClassNames", "class_names", "row_of"]

NULL_NAMES = {"unconditional", "uncond", "null", "none", "no class", "no label", "empty"}
NO_NULL = -1  # --null-class -1: the model has none, whatever its classes are called


@dataclass(frozen=True)
class ClassNames:
    """Names of the N classes, and the index of the null class among the embeddings; None if there is none."""

    names: tuple[str, ...]
    null: int | None

    def labels(self) -> dict[int, str]:
        """Names by the index of their embedding."""
        return {index + (self.null is not None and index >= self.null): name for index, name in enumerate(self.names)}


def class_names(
    source: str, embeddings: int | None, given: Sequence[str], index: Mapping[str, Any], null_class: int | None
) -> ClassNames:
    """The names ``given`` in order, else those of a pipeline's ``id2label``, else numbers.

    The null class is ``null_class`` (-1: none), else the pipeline's, else the one embedding without a name (the last one, if
    the names have no numbers), else the first or last class if it is called so. Raises InputError for names that do not fit.
    """
    if embeddings is None:
        return ClassNames(tuple(given), None)
    null = index.get("null_class") if null_class is None else null_class
    if null is not None and (not isinstance(null, int) or isinstance(null, bool) or not NO_NULL <= null < embeddings):
        raise InputError(f"--null-class {null}: {source} has class embeddings 0 to {embeddings - 1}")
    named = dict(enumerate(given)) if given else _labels(source, index.get("id2label"))
    if null is None:
        null = _null_of(source, named, embeddings, bool(given))
    null = None if null == NO_NULL else null
    if not named:
        return _checked(source, ClassNames(tuple(str(i) for i in range(embeddings - (null is not None))), null), embeddings)
    if null is not None and len(named) == embeddings:
        named = {number: name for number, name in named.items() if number != null}  # the null class has a name too
    elif not given and sorted(named) not in ([i for i in range(embeddings) if i != null], list(range(len(named)))):
        raise InputError(f"{source}: id2label must name the classes 0 to {len(named) - 1}, each once")
    return _checked(source, ClassNames(tuple(named[number] for number in sorted(named)), null), embeddings)


def _null_of(source: str, named: Mapping[int, str], embeddings: int, in_order: bool) -> int | None:
    unnamed = [number for number in range(embeddings) if number not in named]
    if named and len(unnamed) == 1:
        if in_order:
            warnings.warn(
                f"{source}: the last of {embeddings} class embeddings is taken for 'no class', the null class of guidance; "
                "--null-class 0 if it is the first",
                Notice,
                stacklevel=4,
            )
        return unnamed[0]
    if len(named) != embeddings or embeddings < 2:
        return None
    called = [number for number in (0, embeddings - 1) if fold(named.get(number, "")) in NULL_NAMES]
    if len(called) != 1:
        return None
    warnings.warn(
        f"{source}: class {called[0]} is called {named[called[0]]!r}, and is taken for the null class of guidance; "
        f"--null-class {NO_NULL} if it is a class like the others",
        Notice,
        stacklevel=4,
    )
    return called[0]


def _labels(source: str, id2label: Any) -> dict[int, str]:
    """Names of a pipeline's ``id2label`` by embedding; {} if it has none. Two of one name get their numbers too, and what has
    no name is called by its number."""
    try:
        found = {int(number): str(name).strip() or str(number) for number, name in (id2label or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{source}: id2label must map class indices to names") from error
    times = Counter(found.values())
    return {number: name if times[name] == 1 else f"{name} ({number})" for number, name in found.items()}


def _checked(source: str, found: ClassNames, embeddings: int) -> ClassNames:
    expected = embeddings - (found.null is not None)
    if len(found.names) != expected:
        raise InputError(
            f"{source} has {expected} classes, but {len(found.names)} class names were given (names with commas in them: "
            "repeat --class-names, once for each)"
        )
    broken = [name for name in found.names if not is_text(name)]
    if broken:
        raise InputError(f"{source}: the class name {broken[0]!a} is no text; give names with --class-names")
    if not all(name.strip() for name in found.names):
        raise InputError(f"{source}: a class name is empty; give one for each class with --class-names")
    twice = sorted({name for name in found.names if found.names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: {twice[0]!r} is the name of several classes; give distinct ones with --class-names")
    return found


def row_of(wanted: str | int, names: Sequence[str]) -> int:
    """Row of a class given by its name in any writing, by one of its words that commas divide, or by its number.

    Raises InputError with the nearest names if there is none.
    """
    if not isinstance(wanted, bool | str):
        with suppress(TypeError):
            wanted = operator.index(wanted)  # a label as NumPy and PyTorch have them
            named = find_name(str(wanted), names)
            if named not in (None, wanted) and 0 <= wanted < len(names):
                raise InputError(
                    f"{wanted} is the number of the class {names[wanted]!r} and the name of another: give the name"
                )
    if isinstance(wanted, bool) or not isinstance(wanted, str | int):
        raise InputError(f"a class is given by its name or its number, several as values of their own, not as {wanted!r}")
    name = str(wanted)
    found = find_name(name, names)
    if found is not None:
        return found
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    lowered = {known.lower(): known for known in names}
    near = [lowered[match] for match in get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    hint = f"did you mean {' or '.join(near)}?" if near else f"its classes are {known}"
    raise InputError(f"the model has no class {name!r}: {hint}")
