"""What an erasure of concepts works with, in words: prompts that name them, answers with the anchor, prompts that stay."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semu_diffusion.domains.config import ConceptErasureConfig
from semu_diffusion.domains.prompts import (
    ANCHORS,
    RETAIN_PROMPTS,
    TEMPLATES,
    bare,
    contains,
    retained,
    with_anchor,
    with_article,
)
from semu_diffusion.domains.vocabulary import Subject, Vocabulary
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.names.words import Noun

__all__ = ["ConceptPlan", "different", "plan_words"]


@dataclass(frozen=True)
class ConceptPlan:
    """One concept of a run: its words, the prompts that name it, and what may answer them.

    ``scenes`` are the (style, object's word) of each prompt if a vocabulary knows the concept as ``subject``, else empty.
    """

    concept: str
    words: tuple[str, ...]
    prompts: tuple[str, ...]
    scenes: tuple[tuple[str, str], ...] = ()
    subject: Subject | None = None
    vocabulary: Vocabulary | None = None

    def candidates(self, others: Sequence[str] = ()) -> list[str]:
        """What may be the anchor if nobody says, without the words of ``others``; a style is answered with the plain one."""
        if self.vocabulary is not None and self.subject is not None:
            if self.subject.kind == "style" and self.subject.name != self.vocabulary.plain_style:
                return [self.vocabulary.plain_style]
            nouns: Sequence[str] = self.vocabulary.names(self.subject.kind)
        else:
            nouns = ANCHORS
        return [noun for noun in nouns if not any(contains(noun, word) for word in (*self.words, *others))]

    def answers(self, anchor: str) -> list[str]:
        """The prompt that answers each of ``prompts``; the empty prompt for an empty anchor."""
        known = self.vocabulary.subject(anchor) if self.vocabulary is not None and anchor.strip() else None
        found = []
        for index, prompt in enumerate(self.prompts):
            answer = None
            if self.vocabulary is not None and self.subject is not None and known is not None and self.scenes:
                style, word = self.scenes[index]
                answer = self.vocabulary.answer(style, word, self.subject, known)
            found.append(with_anchor(prompt, self.words, anchor) if answer is None else answer)
        return found

    @property
    def disclosed_words(self) -> tuple[str, ...]:
        """The words that an edit may know of: all but those that a vocabulary holds back for its test."""
        if self.vocabulary is None or self.subject is None or self.subject.kind == "style":
            return self.words
        held = set(self.vocabulary.words(self.subject)) - set(self.vocabulary.shown_words(self.subject.name))
        return tuple(word for word in self.words if word not in held or word == bare(self.concept))

    def sentence(self, prompt: str) -> str | None:
        """A prompt with ``{}`` in the concept's place, None if it does not name it exactly once."""
        found = with_anchor(prompt, self.words, "{}")
        return found if found.count("{}") == 1 else None


_LIST = re.compile(r"[;、，；]|,(?!\d)|(?<!\d),")  # 10,000 Maniacs is none


def plan_words(
    config: ConceptErasureConfig, vocabulary: Vocabulary | None, erased: bool = False
) -> tuple[list[ConceptPlan], list[str]]:
    """A plan for each concept of ``config``, and the prompts that shall stay as they are.

    Synonyms belong to the first concept. What was ``erased`` before is taken as it was then, a list or not. Raises InputError
    for given forget prompts that name none of the words, and if no retain prompt is left.
    """
    plans: list[ConceptPlan] = []
    for number, concept in enumerate(different(config.concept)):
        given = config.synonyms if number == 0 else ()
        subject = vocabulary.subject(concept) if vocabulary is not None else None
        if subject is None and not config.forget_prompts and not erased and _LIST.search(concept):
            raise InputError(
                f"{concept!r} is a list: name several concepts as words of their own ('cat' 'dog'), other names of one with "
                "--synonyms, and a name that has a comma in prompts with --forget-prompts"
            )
        if vocabulary is None or subject is None or config.forget_prompts:
            known = vocabulary.words(subject) if vocabulary is not None and subject is not None else ()
            made = [with_article(template, word) for word in (concept, *given) for template in TEMPLATES]
            words = tuple(dict.fromkeys((bare(concept), *map(bare, given), *known)))
            prompts = [p for p in config.forget_prompts if any(contains(p, w) for w in words)] or made
            plans.append(ConceptPlan(concept, words, tuple(dict.fromkeys(prompts)), (), subject, vocabulary))
            continue
        scenes = {prompt: (style, word) for prompt, style, word in vocabulary.forget_prompts(subject)}
        for word in given:
            scenes |= {vocabulary.prompt(style, word): (style, word) for style in vocabulary.styles}
        words = tuple(dict.fromkeys((bare(concept), *vocabulary.words(subject), *map(bare, given))))
        plans.append(ConceptPlan(concept, words, tuple(scenes), tuple(scenes.values()), subject, vocabulary))
    every = [word for one in plans for word in one.words]
    for prompt in config.forget_prompts:
        if not any(contains(prompt, word) for word in every):
            raise InputError(f"the forget prompt {prompt!r} names none of {', '.join(every)}")
    for one in plans:
        _check_anchor(one, config.anchor)
    subjects = [one.subject for one in plans if one.subject is not None]
    general = vocabulary.retain_prompts(subjects) if vocabulary is not None else list(RETAIN_PROMPTS)
    kept = retained(config.retain_prompts or general, every)
    dropped = [prompt for prompt in config.retain_prompts if prompt.strip() and prompt not in kept]
    if dropped:
        shown = ", ".join(map(repr, dropped[:3])) + (", …" if len(dropped) > 3 else "")
        warnings.warn(
            f"{len(dropped)} retain prompts name what shall be erased, and are left out: {shown}", Notice, stacklevel=3
        )
    return plans, kept


def _check_anchor(one: ConceptPlan, anchor: str | None) -> None:
    """InputError for an anchor that names the concept itself, or something of another kind."""
    if anchor is None or not anchor.strip():
        return
    known = one.vocabulary.subject(anchor) if one.vocabulary is not None else None
    if any(contains(anchor, word) for word in one.words) or (known is not None and known == one.subject):
        raise InputError(f"--anchor {anchor!r} means {one.concept!r}, which shall be erased: name something else")
    if known is not None and one.subject is not None and known.kind != one.subject.kind:
        kinds = f"{one.concept!r} is of the {one.subject.kind}s, --anchor {anchor!r} of the {known.kind}s"
        raise InputError(f"{kinds}: name something of its own kind")


def different(concepts: Iterable[str]) -> list[str]:
    """The concepts without those that are an earlier one in the plural, in another case or with an article."""
    found: dict[str, str] = {}
    for concept in concepts:
        found.setdefault(Noun.of(bare(concept)).singulars[0], concept)
    return list(found.values())
