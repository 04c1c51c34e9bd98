"""Questions that somebody wrote down, as the field's tests ask them: of a vocabulary, or of a file that --questions names.

Four groups, all optional, by the object or style that is erased. ``binomials``: prompts with what must stay beside it, or one
list of sentences with ``{erased}`` and ``{kept}`` for every object; ``implicit``: descriptions without the name; ``languages``:
prompts in other languages; ``look_alikes``: prompts for what only looks or sounds like it, with what must be seen then (None:
the pictures are only compared).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semu_diffusion.domains.prompts import article, bare
from semu_diffusion.errors import InputError
from semu_diffusion.files import is_text, read_json
from semu_diffusion.names.letters import fold
from semu_diffusion.names.words import Noun

__all__ = ["NamedQuestions", "Table", "about", "named_questions", "read_questions"]

Table = Mapping[str, tuple[str, ...]]
Pair = tuple[str, str | None]  # a prompt, and what must be seen
Pairs = Mapping[str, Mapping[str, str | None]]
PAIRS = ("binomials", "look_alikes")  # groups of them
PROMPTS = '{"what is erased": ["prompt", …]}'


@dataclass(frozen=True, kw_only=True)
class NamedQuestions:
    """The groups of questions that are written down: see the module."""

    binomials: tuple[str, ...] | Pairs = ()
    implicit: Table = field(default_factory=dict)
    languages: Table = field(default_factory=dict)
    look_alikes: Pairs = field(default_factory=dict)

    @classmethod
    def of(cls, content: Any) -> NamedQuestions:
        """The groups of a JSON object. Raises ValueError, in words, for any that cannot be asked."""
        known = [one.name for one in dataclasses.fields(NamedQuestions)]
        if not isinstance(content, Mapping) or not content:
            raise ValueError(f"it needs groups of questions: {', '.join(known)}")
        for group, value in content.items():
            if group not in known:
                raise ValueError(f"{group!r} is no group of questions: choose from {', '.join(known)}")
            _check(group, value)
        return NamedQuestions(**{group: _frozen(value) for group, value in content.items()})

    @property
    def subjects(self) -> tuple[str, ...]:
        """The objects and styles that have questions of their own."""
        tables = (self.binomials, self.implicit, self.languages, self.look_alikes)
        return tuple(dict.fromkeys(name for table in tables if isinstance(table, Mapping) for name in table))

    @property
    def answers(self) -> tuple[str, ...]:
        """What must be seen, by name."""
        tables = (table for table in (self.binomials, self.look_alikes) if isinstance(table, Mapping))
        found = (answer for table in tables for asked in table.values() for answer in asked.values())
        return tuple(dict.fromkeys(answer for answer in found if answer is not None))

    def beside(self, called: Sequence[str], kept: Mapping[str, str]) -> list[Pair]:
        """(prompt, what must stay in its pictures): those of the thing that is ``called`` so, or a sentence with the first of
        its names for each of ``kept``, by its word."""
        if isinstance(self.binomials, Mapping):
            return about(self.binomials, called)
        rows = enumerate(kept.items() if self.binomials else ())
        sentences = [(self.binomials[row % len(self.binomials)], word, one) for row, (one, word) in rows]
        return [(article(sentence.format(kept=word, erased=called[0])), one) for sentence, word, one in sentences]


def about(table: Mapping[str, Any], called: Sequence[str]) -> list[Any]:
    """The prompts, or pairs of prompt and answer, of the thing that is ``called`` so, in the singular or plural."""
    wanted = {form for name in called for form in Noun.of(bare(name)).forms}
    found = (value for key, value in table.items() if fold(bare(key)) in wanted)
    return [one for value in found for one in (value.items() if isinstance(value, Mapping) else value)]


def named_questions(content: Any, where: str = "questions") -> NamedQuestions:
    """As `NamedQuestions.of`; raises InputError that begins with ``where`` they stand."""
    try:
        return NamedQuestions.of(content)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def read_questions(path: str) -> dict[str, Any]:
    """The content of a file of ``--questions``, checked. Raises InputError, one line, for what cannot be asked."""
    content: dict[str, Any] = read_json(path, f"--questions {path}")
    named_questions(content, f"--questions {path}")
    return content


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list | tuple) else value


def _check(group: str, value: Any) -> None:
    """ValueError for a group that is empty, or of another form than it has."""
    if group == "binomials" and isinstance(value, list | tuple):
        for sentence in _prompts(group, value):
            _check_sentence(sentence)
        return
    if not isinstance(value, Mapping) or not value:
        form = '{"what is erased": {"prompt": "what must be seen" or null}}' if group in PAIRS else PROMPTS
        raise ValueError(f"{group} is not of the form {form}")
    for name, asked in value.items():
        of = f"{group} of {name!r}"
        if not name.strip():
            raise ValueError(f"{group} has a name without a letter")
        if group not in PAIRS:
            _prompts(of, asked)
        elif not isinstance(asked, Mapping):
            raise ValueError(f'{of} are not of the form {{"prompt": "what must be seen" or null}}')
        else:
            _prompts(of, list(asked))
            _prompts(of, [answer for answer in asked.values() if answer is not None], least=0)


def _prompts(of: str, given: Any, least: int = 1) -> Sequence[str]:
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ValueError(f"{of} are no list of prompts")
    if len(given) < least or not all(one.strip() and is_text(one) and "\0" not in one for one in given):
        raise ValueError(f"{of} have an empty prompt, or none")
    return given


def _check_sentence(sentence: str) -> None:
    if not all(place in sentence for place in ("{kept}", "{erased}")):
        raise ValueError(f"the binomial {sentence!r} lacks {{kept}} or {{erased}}")
    try:
        sentence.format(kept="it", erased="it")
    except (LookupError, ValueError, AttributeError) as error:
        raise ValueError(f"the binomial {sentence!r} has braces around something else") from error
