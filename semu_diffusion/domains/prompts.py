"""Prompts for an erasure: those that name a concept, the same with its anchor, and those that shall stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from semu_diffusion.errors import InputError
from semu_diffusion.names.words import ARTICLE, Noun, article, bare, replace_nouns, singular

__all__ = [
    "ANCHORS",
    "HELD_OUT_KEPT",
    "HELD_OUT_TEMPLATES",
    "RETAIN_PROMPTS",
    "TEMPLATES",
    "article",
    "bare",
    "contains",
    "is_listed",
    "listed",
    "retained",
    "singular",
    "with_anchor",
    "with_article",
]


TEMPLATES = ("a photo of a {}", "a picture of a {}", "an image of a {}", "{}")

# Sentences that no erasure is made with, so that they can test it.
HELD_OUT_TEMPLATES = ("there is a {} in the middle", "the {}", "a close look at a {}")

# What a concept may be answered with if nobody says: plain nouns that every text-to-image model knows.
ANCHORS = ("dog", "bird", "car", "house", "tree", "person", "flower", "painting")

# Everyday subjects, places and looks, so that what surrounds a concept is protected too.
THINGS = (
    "a person, a man, a woman, a child, a crowd, a cat, a dog, a horse, a bird, a fish, a butterfly, an elephant, a car, "
    "a truck, a bus, a bicycle, an airplane, a ship, a train, a house, a church, a tower, a bridge, a street, a city, "
    "a kitchen, "
    "a bedroom, a chair, a table, a lamp, a cup, a bottle, a pizza, a plate of food, an apple, a book, a phone, a computer, "
    "a clock, a guitar, a ball, a shoe, a hat, a tree, a flower, a forest, a garden, a mountain, a beach, a river, "
    "a waterfall, a desert, a sunset, a night sky"
)
LOOKS = ("an oil painting", "a watercolor", "a pencil drawing", "a cartoon", "a black and white photo", "a 3d render")
RETAIN_PROMPTS = (*(f"a photo of {thing}" for thing in THINGS.split(", ")), *LOOKS)

# What must stay too, in words and sentences that no retain term is trained on.
HELD_OUT_KEPT = ("the owl", "the castle", "the violin", "the sandwich")


def contains(prompt: str, word: str) -> bool:
    """True if the prompt has the word as a word of its own: singular or plural, in any case, between underscores, or anywhere
    in a script without blanks."""
    return Noun.of(word).within(prompt)


def with_anchor(prompt: str, words: Sequence[str], anchor: str) -> str:
    """The prompt with every one of the words replaced by the anchor; the empty prompt for an empty anchor.

    An anchor with an article of its own takes the place of the word's article too; it stands in the plural where the word does.
    """
    noun = anchor.strip()
    return replace_nouns(prompt, words, noun) if noun else ""


def retained(prompts: Sequence[str], words: Sequence[str]) -> list[str]:
    """The prompts that name none of the words, once each; InputError if none is left."""
    kept = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip() and not any(contains(prompt, w) for w in words)]
    if not kept:
        raise InputError("every retain prompt names what shall be erased: give others with --retain-prompts")
    return kept


def is_listed(prompt: str) -> bool:
    """Whether a prompt of a command line is a file of prompts."""
    return prompt.lower().endswith(".txt")


def listed(given: Sequence[str]) -> tuple[str, ...]:
    """The prompts of a command line: each is itself, or the lines of a UTF-8 file whose name ends in ``.txt``,
    but for comments (``# …``).

    Raises InputError for such a file that cannot be read or holds nothing.
    """
    found: list[str] = []
    for one in given:
        if not is_listed(one):
            found.append(one)
            continue
        try:  # a byte order mark, as editors on Windows write it, is no letter of the first prompt
            lines = [line.strip() for line in Path(one).expanduser().read_text(encoding="utf-8-sig").splitlines()]
        except OSError as error:
            raise InputError(f"{one} cannot be read as a list of prompts ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{one} is no text in UTF-8: save it as UTF-8, one prompt a line") from error
        lines = [line for line in lines if line and not line.startswith("# ")]
        if not lines:
            raise InputError(f"{one} holds no prompt: one a line is needed")
        found += lines
    return tuple(found)


def with_article(template: str, word: str) -> str:
    """The template with the word and the article that fits: none where the word has its own, or is a plural."""
    if ARTICLE.match(word):
        template = template.replace(" a {}", " {}").replace("the {}", "{}")
    elif singular(word) != word.strip():
        template = template.replace(" a {}", " {}")
    return article(template.format(word))
