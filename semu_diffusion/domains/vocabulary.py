"""What a small text-to-image model knows, written beside it: its objects by their words, its styles, its sentences.

``vocabulary.json`` in a model's folder saves the user from spelling out synonyms, retain prompts and alternatives, and
holds back words and sentences by which an erasure is tested. Any model may have one; `erase-concept` works without.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from semu_diffusion.domains.named_questions import NamedQuestions, Table
from semu_diffusion.domains.prompts import article, bare
from semu_diffusion.errors import InputError
from semu_diffusion.files import read_json, write_text
from semu_diffusion.names.letters import fold
from semu_diffusion.names.words import Noun

__all__ = ["Subject", "Vocabulary", "read_vocabulary"]

FILE = "vocabulary.json"
OPTIONAL = tuple(one.name for one in dataclasses.fields(NamedQuestions))


@dataclass(frozen=True)
class Subject:
    """An object or a style of a vocabulary."""

    name: str
    kind: Literal["object", "style"]


@dataclass(frozen=True)
class Vocabulary(NamedQuestions):
    """Words of every object (the last one is held out if there are several), words of every style (the first is plain).

    ``prompts``: the plain sentence of each style, with ``{}`` for an object's word. ``templates`` and
    ``held_out_templates``: other sentences, trained on and not. ``judges``: of objects and of styles, if any.

    What else a model can be asked stands in its `NamedQuestions`, of objects and styles that it knows.
    """

    objects: Table
    styles: Table
    prompts: Mapping[str, str]
    templates: Table
    held_out_templates: Table
    guidance_scale: float
    judges: Mapping[str, str]

    def subject(self, words: str) -> Subject | None:
        """The object or style that the words name, None if they are of no list."""
        wanted = set(Noun.of(bare(words)).forms)
        for kind, table in (("object", self.objects), ("style", self.styles)):
            for name, known in table.items():
                if wanted & {fold(word) for word in (name, *known)}:
                    return Subject(name, kind)  # type: ignore[arg-type]
        return None

    def words(self, subject: Subject) -> tuple[str, ...]:
        """Every word of a subject, held out or not."""
        return tuple(dict.fromkeys((self.objects if subject.kind == "object" else self.styles)[subject.name]))

    def word(self, name: str) -> str:
        """What an object is called in a sentence: the first of its words; its name may be a folder's (``tabby_cat``)."""
        return self.objects[name][0]

    def shown_words(self, name: str) -> tuple[str, ...]:
        """The words of an object that an erasure may use: all but the one that tests it."""
        words = self.objects[name]
        return words[:-1] if len(words) > 1 else words

    def names(self, kind: str) -> tuple[str, ...]:
        return tuple(self.objects if kind == "object" else self.styles)

    @property
    def plain_style(self) -> str:
        return next(iter(self.styles))

    def prompt(self, style: str, word: str) -> str:
        """The plain sentence for a word in a style."""
        return article(self.prompts[style].format(word))

    def forget_prompts(self, subject: Subject) -> list[tuple[str, str, str]]:
        """(prompt, style, word) of the sentences that name a subject: an object in every style, a style with every object."""
        if subject.kind == "style":
            pairs = [(t, self.word(name)) for t in self._templates(subject.name) for name in self.objects]
            return [(article(template.format(name)), subject.name, name) for template, name in pairs]
        found = [(t, style, w) for w in self.shown_words(subject.name) for style, t in self.prompts.items()]
        found += [
            (t, self.plain_style, w) for w in self.shown_words(subject.name) for t in self.templates[self.plain_style][1:]
        ]
        return [(article(template.format(word)), style, word) for template, style, word in found]

    def answer(self, style: str, word: str, subject: Subject, anchor: Subject) -> str | None:
        """The plain sentence with the anchor in the subject's place; None if they are not of one kind."""
        if anchor.kind != subject.kind:
            return None
        return self.prompt(anchor.name, word) if subject.kind == "style" else self.prompt(style, self.word(anchor.name))

    def retain_prompts(self, erased: Sequence[Subject]) -> list[str]:
        """A sentence for every other object in every other style, the words in turn."""
        gone = {subject.name for subject in erased}
        pairs = [(s, o) for o in self.objects for s in self.styles if s not in gone and o not in gone]
        spoken = [self.shown_words(o)[i % len(self.shown_words(o))] for i, (_, o) in enumerate(pairs)]
        return [self.prompt(style, word) for (style, _), word in zip(pairs, spoken, strict=True)]

    def _templates(self, style: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.prompts[style], *self.templates[style])))

    def save(self, folder: Path) -> Path:
        path = folder / FILE
        content = {key: value for key, value in dataclasses.asdict(self).items() if value or key not in OPTIONAL}
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return path

    def check_asked(self, named: NamedQuestions) -> None:
        """ValueError for questions whose answer none of its judges knows."""
        strange = {*named.answers} - {*self.objects}
        if strange:
            raise ValueError(f"{min(strange)!r}, which must be seen, is no object of the vocabulary: null only compares")


def read_vocabulary(source: str | Path) -> Vocabulary | None:
    """The vocabulary of a model's folder, None if it has none; InputError for a file that is no vocabulary."""
    path = Path(source).expanduser() / FILE
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = read_json(path)
        for name in ("objects", "styles", "templates", "held_out_templates"):
            if not all(isinstance(words, list) for words in content[name].values()):
                raise TypeError(f"{name} are lists of words")
            content[name] = {key: tuple(str(word) for word in words) for key, words in content[name].items()}
        asked = {name: content[name] for name in OPTIONAL if name in content}
        found = Vocabulary(**{**content, **(vars(NamedQuestions.of(asked)) if asked else {})})
        found.check_asked(found)
        strange = {*found.subjects} - {*found.objects, *found.styles}
        if strange:
            raise ValueError(f"questions of {min(strange)!r}, which is neither an object nor a style")
        tables_of_styles = (found.prompts, found.templates, found.held_out_templates)
        complete = found.styles and all(style in table for style in found.styles for table in tables_of_styles)
        if not complete or not found.objects or not all(found.objects.values()):
            raise ValueError("a style without a sentence, or an object without a word")
        if not set(found.judges) <= {"object", "style"}:
            raise ValueError("a judge of neither objects nor styles")
        if type(found.guidance_scale) not in (int, float) or not all(isinstance(one, str) for one in found.judges.values()):
            raise TypeError("a guidance scale that is no number, or a judge that is no name")
        for sentences in (found.prompts.values(), *found.templates.values(), *found.held_out_templates.values()):
            for sentence in sentences:
                str.format(sentence, "it")
        return found
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no readable vocabulary ({error!r})") from error
