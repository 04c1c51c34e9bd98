"""Prompts for an erasure: those that name a concept, the same with its anchor, and those that shall stay as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from semu_diffusion.errors import InputError

__all__ = [
    "ANCHORS",
    "HELD_OUT_TEMPLATES",
    "RETAIN_PROMPTS",
    "TEMPLATES",
    "article",
    "bare",
    "contains",
    "listed",
    "retained",
    "singular",
    "with_anchor",
    "with_article",
]


def article(caption: str) -> str:
    """``a airplane`` is ``an airplane``."""
    words = caption.split(" ")
    pairs = zip(words, [*words[1:], ""], strict=True)
    return " ".join("an" if word == "a" and after[:1] in tuple("aeiou") else word for word, after in pairs)


TEMPLATES = ("a photo of a {}", "a picture of a {}", "an image of a {}", "{}")

# Sentences that no erasure is made with, so that they can test it.
HELD_OUT_TEMPLATES = ("there is a {} in the middle", "the {}", "a close look at a {}")

# What a concept may be answered with if nobody says: plain nouns that every text-to-image model knows.
ANCHORS = ("dog", "bird", "car", "house", "tree", "person", "flower", "painting")

# Everyday subjects, places and looks, so that what surrounds a concept is protected too.
THINGS = (
    "person, man, woman, child, crowd, cat, dog, horse, bird, fish, butterfly, elephant, car, truck, bus, bicycle, airplane, "
    "ship, train, house, church, tower, bridge, street, city, kitchen, bedroom, chair, table, lamp, cup, bottle, pizza, "
    "plate of food, apple, book, phone, computer, clock, guitar, ball, shoe, hat, tree, flower, forest, garden, mountain, "
    "beach, river, waterfall, desert, sunset, night sky"
)
LOOKS = ("an oil painting", "a watercolor", "a pencil drawing", "a cartoon", "a black and white photo", "a 3d render")
RETAIN_PROMPTS = (*(article(f"a photo of a {thing}") for thing in THINGS.split(", ")), *LOOKS)


_ARTICLE = re.compile(r"(a|an|the)\s+", re.IGNORECASE)


def bare(noun: str) -> str:
    """A noun without its article and in lower case, for looking it up."""
    return _ARTICLE.sub("", noun.strip(), count=1).lower()


def singular(word: str) -> str:
    """The word without a plural s; as it is if it is short or ends in ss."""
    word = word.strip()
    return word[:-1] if len(word) > 3 and word.lower().endswith("s") and not word.lower().endswith("ss") else word


def with_anchor(prompt: str, words: Sequence[str], anchor: str) -> str:
    """The prompt with every one of the words replaced by the anchor; the empty prompt for an empty anchor.

    An anchor with an article of its own takes the place of the word's article too.
    """
    noun = anchor.strip()
    if not noun:
        return ""
    spoken = "|".join(re.escape(singular(word)) for word in sorted(words, key=len, reverse=True))
    before = r"(?:\b(?:a|an|the)\s+)?" if _ARTICLE.match(noun) else ""
    found = re.sub(rf"{before}(?<!\w)(?:{spoken})s?(?!\w)", lambda _: noun, prompt, flags=re.IGNORECASE)
    return article(re.sub(rf"\ban {re.escape(noun)}", f"a {noun}", found))


def retained(prompts: Sequence[str], words: Sequence[str]) -> list[str]:
    """The prompts that name none of the words, once each; InputError if none is left."""
    kept = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip() and not any(contains(prompt, w) for w in words)]
    if not kept:
        raise InputError("every retain prompt names what shall be erased: give others with --retain-prompts")
    return kept


def listed(given: Sequence[str]) -> tuple[str, ...]:
    """The prompts of a command line: each is itself, or the lines of a file whose name ends in ``.txt``.

    Raises InputError for such a file that cannot be read or holds nothing.
    """
    found: list[str] = []
    for one in given:
        if not one.endswith(".txt"):
            found.append(one)
            continue
        try:
            lines = [line.strip() for line in Path(one).expanduser().read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{one} cannot be read as a list of prompts ({error})") from error
        if not any(lines):
            raise InputError(f"{one} holds no prompt: one a line is needed")
        found += [line for line in lines if line]
    return tuple(found)


def contains(prompt: str, word: str) -> bool:
    """Whether the prompt has the word as a word of its own, with or without a plural s, in any case."""
    return _whole(word).search(prompt) is not None


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(singular(word))}s?(?!\w)", re.IGNORECASE)


def with_article(template: str, word: str) -> str:
    """The template with the word, an article that fits, and no second one (``a photo of the moon``)."""
    if _ARTICLE.match(word):
        template = template.replace(" a {}", " {}").replace("the {}", "{}")
    return article(template.format(word))
