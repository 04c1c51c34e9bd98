"""What a model is asked before and after an erasure, and what the right answers are.

Four groups, as UnlearnCanvas (Zhang et al. 2024) names them: what was erased by the words it was erased with; by words and
sentences that were held back; its own domain (the other classes, objects or styles); the other domain. The prompts of the last
two are in the names and sentences of the retain term, which is trained on a part of them, so a fifth asks for what is kept by
words and sentences that no erasure knows. A run of classes has the first and the third.

Where a model's vocabulary or a file of ``--questions`` names them, four more groups ask as the field's tests do: for the erased
thing beside a kept one that must stay; by a description without its name, and in other languages; and for what only looks or
sounds like it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from semu_diffusion.domains.named_questions import NamedQuestions, about
from semu_diffusion.domains.prompts import ANCHORS, HELD_OUT_KEPT, HELD_OUT_TEMPLATES, article, bare, contains, with_article
from semu_diffusion.domains.vocabulary import Subject, Vocabulary
from semu_diffusion.errors import InputError
from semu_diffusion.names.words import Noun

__all__ = ["GROUPS", "NAMED_GROUPS", "Question", "Questions", "class_questions", "concept_questions", "conditions"]

GROUPS = ("forget", "paraphrase", "in_domain", "cross_domain", "kept_held_out")
NAMED_GROUPS = ("binomial", "implicit", "language", "look_alike")  # of a vocabulary or a file that names them
STYLED = 3  # objects that each style is asked with
PAIRED = 4  # kept objects that an erased one is asked beside


@dataclass(frozen=True)
class Question:
    """A condition (a class's name or a prompt) and the class that a judge of this ``kind`` must see in its samples.

    ``condition`` "" is no condition at all; ``answer`` None: nothing is judged.
    """

    condition: str
    kind: str = "object"
    answer: str | None = None


Questions = Mapping[str, tuple[Question, ...]]


def conditions(questions: Questions, *groups: str) -> list[str]:
    """Every condition that the groups (default: all) are asked with, once, in their order; "" is none."""
    asked = (question.condition for group in groups or questions for question in questions.get(group, ()))
    return [condition for condition in dict.fromkeys(asked) if condition]


def class_questions(names: Sequence[str], erased: Sequence[str], conditional: bool = True) -> Questions:
    """Of each class ``names`` of a model whether it is seen; an unconditional model is asked without a condition."""
    if not conditional:
        return {"forget": tuple(Question("", "object", name) for name in erased), "in_domain": ()}
    forget = tuple(Question(name, "object", name) for name in erased)
    return {"forget": forget, "in_domain": tuple(Question(name, "object", name) for name in names if name not in erased)}


def concept_questions(
    concepts: Sequence[str],
    forget: Sequence[str],
    kept: Sequence[str],
    paraphrases: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    alternatives: Sequence[str] = (),
    named: NamedQuestions | None = None,
    by_name: Sequence[str] = (),
    retained: Collection[str] = (),
) -> Questions:
    """The questions of each group of `GROUPS`, each prompt once, and of `NAMED_GROUPS` as far as anybody names them.

    ``forget`` are the erasure's prompts, ``kept`` those of its ``retained`` ones that are asked. With a vocabulary that knows
    every concept the groups come from it, but for ``by_name``, prompts of the user's own that the erasure has, too. Else a
    judge is asked to tell the concepts from the ``alternatives``, and the kept prompts are only compared in pairs. What is held
    out is none of the erasure's. Raises InputError for ``named`` questions of other things alone, or whose answer is none that
    the vocabulary knows, and for ``paraphrases`` that the erasure has.
    """
    subjects = [] if vocabulary is None else [vocabulary.subject(concept) for concept in concepts]
    known = [subject for subject in subjects if subject is not None]
    if vocabulary is not None and len(known) == len(concepts):
        parts = [_of_vocabulary(vocabulary, subject, known) for subject in dict.fromkeys(known)]
        found = {group: [question for part in parts for question in part[group]] for group in (*GROUPS, *NAMED_GROUPS)}
    else:
        found = _of_words(concepts, forget, kept, alternatives)
    answers = [(subject.kind, subject.name) for subject in known] if len(known) == len(concepts) else []
    meant = dict(zip(concepts, answers or [("object", concept) for concept in concepts], strict=True))
    if by_name and answers:
        own = [Question(p, *meant[_named(p, concepts)]) for p in by_name]
        found["forget"] = [*own, *(question for question in found["forget"] if question.condition in forget)]
    if paraphrases:
        found["paraphrase"] = [Question(p, *meant[_named(p, concepts)]) for p in paraphrases]
    if named is not None:
        _add_named(found, named, concepts, known, vocabulary, alternatives)
    used = {*forget, *(question.condition for question in found["forget"])}
    found["paraphrase"] = [question for question in found["paraphrase"] if question.condition not in used]
    found["kept_held_out"] = [question for question in found["kept_held_out"] if question.condition not in retained]
    if paraphrases and not found["paraphrase"]:
        raise InputError("--paraphrases: the erasure uses all of them itself: give prompts in other words")
    return {group: tuple(dict.fromkeys(asked)) for group, asked in found.items() if group in GROUPS or asked}


def _of_vocabulary(v: Vocabulary, subject: Subject, erased: Sequence[Subject]) -> dict[str, list[Question]]:
    gone = {one.name for one in erased}
    objects = [name for name in v.objects if name not in gone]
    styles = [name for name in v.styles if name not in gone]
    plain = [Question(v.prompt(v.plain_style, v.word(name)), "object", name) for name in objects]
    styled = [
        Question(v.prompt(style, v.word(objects[(row + step) % len(objects)])), "style", style)
        for row, style in enumerate(styles)
        for step in range(0, min(STYLED, len(objects)))
    ]
    held = v.held_out_templates[subject.name if subject.kind == "style" else v.plain_style]
    if subject.kind == "style":
        named = [v.prompt(subject.name, v.word(name)) for name in objects]
        other = [article(held[row % len(held)].format(v.word(name))) for row, name in enumerate(objects)]
    else:
        named = [v.prompt(v.plain_style, word) for word in v.shown_words(subject.name)]
        unseen = [word for word in v.words(subject) if word not in v.shown_words(subject.name)]
        other = [v.prompt(v.plain_style, word) for word in unseen]
        other += [article(template.format(word)) for template in held for word in (v.word(subject.name), *unseen)]
    return {
        "forget": [Question(prompt, subject.kind, subject.name) for prompt in named],
        "paraphrase": [Question(prompt, subject.kind, subject.name) for prompt in other],
        "in_domain": styled if subject.kind == "style" else plain,
        "cross_domain": plain if subject.kind == "style" else styled,
        "kept_held_out": _held_out(v, objects, styles),
        **_named_groups(v, _called(v, subject), subject, {name: v.word(name) for name in objects}, gone),
    }


def _called(v: Vocabulary, subject: Subject) -> tuple[str, ...]:
    """Its word for a sentence, and its name."""
    return (v.word(subject.name), subject.name) if subject.kind == "object" else (subject.name,)


def _named_groups(
    named: NamedQuestions, called: Sequence[str], subject: Subject, kept: Mapping[str, str], erased: Collection[str]
) -> dict[str, list[Question]]:
    """The `NAMED_GROUPS` of a subject that is ``called`` so; what is ``erased`` itself need not be seen."""
    beside = dict(list(kept.items())[:PAIRED]) if subject.kind == "object" else {}
    gone = {"implicit": about(named.implicit, called), "language": about(named.languages, called)}
    seen = {"binomial": named.beside(called, beside), "look_alike": about(named.look_alikes, called)}
    return {
        **{group: [Question(prompt, subject.kind, subject.name) for prompt in prompts] for group, prompts in gone.items()},
        **{
            group: [Question(p, "object", answer) for p, answer in pairs if answer is None or bare(answer) not in erased]
            for group, pairs in seen.items()
        },
    }


def _add_named(
    found: dict[str, list[Question]], named: NamedQuestions, concepts: Sequence[str], known: Sequence[Subject],
    vocabulary: Vocabulary | None, alternatives: Sequence[str],
) -> None:  # fmt: skip
    """Add the questions of a file to those that are ``found``."""
    gone = {form for concept in concepts for form in Noun.of(bare(concept)).forms} | {subject.name for subject in known}
    if vocabulary is not None and len(known) == len(concepts):
        try:
            vocabulary.check_asked(named)
        except ValueError as error:
            raise InputError(f"--questions: {error}") from error
        each = [(subject, (bare(one), *vocabulary.words(subject))) for subject, one in zip(known, concepts, strict=True)]
        kept = {name: vocabulary.word(name) for name in vocabulary.objects if name not in gone}
    else:
        each = [(Subject(concept, "object"), (bare(concept),)) for concept in concepts]
        others = alternatives or ANCHORS
        kept = {one: one for one in others if not any(contains(one, bare(concept)) for concept in concepts)}
    asked = [_named_groups(named, called, subject, kept, gone) for subject, called in each]
    if not any(questions for groups in asked for questions in groups.values()):
        raise InputError(f"--questions: asks of {', '.join(named.subjects)}, and {', '.join(concepts)} is erased")
    for group in NAMED_GROUPS:
        found[group] = [*found.get(group, ()), *(question for groups in asked for question in groups[group])]


def _held_out(v: Vocabulary, objects: Sequence[str], styles: Sequence[str]) -> list[Question]:
    """Each kept object by its held-out word in a held-out sentence, each kept style in a held-out sentence of its own."""
    plain = v.held_out_templates[v.plain_style]
    found = [
        Question(article(plain[row % len(plain)].format(v.objects[name][-1])), "object", name)
        for row, name in enumerate(objects)
    ]
    for row, style in enumerate(name for name in styles if name != v.plain_style and objects):
        held = v.held_out_templates[style]
        found.append(Question(article(held[row % len(held)].format(v.word(objects[row % len(objects)]))), "style", style))
    return found


def _of_words(
    concepts: Sequence[str], forget: Sequence[str], kept: Sequence[str], alternatives: Sequence[str]
) -> dict[str, list[Question]]:
    other = [with_article(template, concept) for concept in concepts for template in HELD_OUT_TEMPLATES]
    return {
        "forget": [Question(prompt, "object", _named(prompt, concepts)) for prompt in forget],
        "paraphrase": [Question(prompt, "object", _named(prompt, concepts)) for prompt in other],
        "in_domain": [Question(with_article("a photo of a {}", name), "object", name) for name in alternatives],
        "cross_domain": [Question(prompt) for prompt in kept],
        "kept_held_out": [Question(prompt) for prompt in HELD_OUT_KEPT if not any(contains(prompt, bare(c)) for c in concepts)]
        + [Question(with_article(HELD_OUT_TEMPLATES[1], name), "object", name) for name in alternatives],
    }


def _named(prompt: str, concepts: Sequence[str]) -> str:
    """The concept that a prompt names, "hot dog" before "dog"; the first one for a prompt in other words."""
    named = [concept for concept in concepts if contains(prompt, bare(concept))]
    return max(named, key=lambda concept: len(bare(concept)), default=concepts[0])
