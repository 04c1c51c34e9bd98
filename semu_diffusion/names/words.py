"""How people write nouns and names: plurals, articles, accents, scripts without spaces.

A noun is found in a sentence in its singular and its plural, as a word of its own, with accents or without; where a script has
no blanks between words, anywhere. `semu_diffusion.names.letters` says which ways of writing are the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from semu_diffusion.names.letters import UNSPACED, accented, composed, fold, folded, letter, plain

__all__ = [
    "Noun",
    "article",
    "bare",
    "find_name",
    "indefinite",
    "match_names",
    "named",
    "plural",
    "replace_nouns",
    "singular",
]

_LATIN = re.compile(r"[a-z]+")
_OTHERS = ("rosé", "résumé", "maté", "pâté", "exposé", "lamé", "marché")  # no rose, and not to resume
_TOLD = frozenset(form for one in _OTHERS for form in (one, one + "s", plain(one), plain(one) + "s"))
_PREFIXED = re.compile("[\u0620-\u064a]")  # what stands before a noun in Arabic is written as one word with it
ARTICLE = re.compile(r"^(?:a|an|the)\s+", re.IGNORECASE)  # at the very start: "van gogh" has none


def find_name(wanted: str, names: Sequence[str]) -> int | None:
    """Index of the one name that ``wanted`` means, or None: as it is, in another writing, or one of a name's words that
    commas divide (``tench`` is "tench, Tinca tinca")."""
    if wanted in names:
        return list(names).index(wanted)
    sought = fold(wanted)
    for writings in (lambda name: (fold(name),), lambda name: tuple(map(fold, name.split(",")))):
        found = [index for index, name in enumerate(names) if sought in writings(name)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def match_names(given: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """For each of ``given`` the index of the one of ``names`` that means the same, None if there is none.

    As `find_name` in both directions, and in the singular or plural: folders and classes are called by different people.
    """
    found: list[int | None] = []
    for one in given:
        index = find_name(one, names)
        if index is None:
            index = next((place for place, name in enumerate(names) if find_name(name, (one,)) is not None), None)
        if index is None:
            index = next((place for place, name in enumerate(names) if fold(one) in Noun.of(bare(name)).forms), None)
        found.append(index)
    return found


def bare(noun: str) -> str:
    """A noun without its article and in lower case, for looking it up."""
    return ARTICLE.sub("", unicodedata.normalize("NFC", noun).strip(), count=1).lower()


# around a name; joiners and variants stay, an emoji ends in one
DIRECTIONS = "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
PAIRS = dict(zip("\"'`“„‘‚«»‹「『《〈【（［([{", "\"'`”“’‘»«›」』》〉】）］)]}", strict=True))


def named(words: str) -> str:
    """What the words name, without quotes and brackets around them, the weight of ``(cat:1.3)`` and the stop at their end.

    A name keeps its own: ``[V]`` of DreamBooth, ``Jr.``, ``Yahoo!``, U.S.A. with its last stop.
    """
    found, before = " ".join(words.split()), ""
    while found != before:
        before, found = found, found.strip(f" ,;:?¿…。，、；：！？{DIRECTIONS}").lstrip("!¡")
        last = found.rstrip(".!").split(" ")[-1]
        if last == last.lower() and "." not in last:
            found = found.rstrip(".!")
        if len(found) > 1 and PAIRS.get(found[0]) == found[-1]:
            found = _within(found)
    return found


def _within(pair: str) -> str:
    """What the outer two marks enclose; all of it if they are no pair, or a part of the name."""
    first, inside, last = pair[0], pair[1:-1], pair[-1]
    core = inside.lstrip(first).rstrip(last)
    if first in core or last in core or (first == "[" and inside and " " not in inside):
        return pair  # "(cat) and (dog)"
    name = re.sub(r":\s*[\d.]+$", "", inside)
    return name if name == inside or any(map(str.isalpha, name)) else pair  # (2:1) is a ratio


@lru_cache(maxsize=2)
def _inflect(classical: bool = False) -> Any:
    import inflect  # takes a second

    engine = inflect.engine()
    engine.classical(all=classical)
    return engine


@lru_cache(maxsize=4096)
def singular(noun: str) -> str:
    """The singular of a noun, of the last word of several (the first of ``birds of prey``); as it is if it is one."""
    noun = noun.strip()
    head, of, rest = noun.partition(" of ")
    before, last = _last_word(head)
    found = _singular(last.lower())
    if found is None or (last.lower() == found + "s" and _singular(str(_inflect().plural_noun(last.lower()))) == last.lower()):
        return noun  # a bus: what its own plural is the plural of
    return before + (last[: len(found)] if last.lower().startswith(found) else found) + of + rest


@lru_cache(maxsize=4096)
def _singular(word: str) -> str | None:
    """What ``word`` may be the plural of (the ``bu`` of ``bus``), None if nothing."""
    if not _LATIN.fullmatch(word) or len(word) < 3:
        return None
    return _inflect().singular_noun(word) or next((one for one in _CLASSICAL if _classical(one) == word), None)


_CLASSICAL = ("cactus", "fungus", "nucleus", "vertebra", "larva", "alga", "matrix", "vertex")


@lru_cache(maxsize=64)
def _classical(noun: str) -> str:
    return str(_inflect(True).plural_noun(noun))


@lru_cache(maxsize=4096)
def plural(noun: str) -> str:
    """The plural of a noun in the singular; as it is for what is no word in Latin letters."""
    noun = noun.strip()
    _, last = _last_word(noun)
    if not _LATIN.fullmatch(last.lower()):
        return noun
    return str(_inflect().plural_noun(noun))


def _last_word(noun: str) -> tuple[str, str]:
    match = re.search(r"[^\s_\-/]+$", noun)
    start = match.start() if match else len(noun)
    return noun[:start], noun[start:]


@dataclass(frozen=True)
class Noun:
    """A noun, or several words, as it may stand in a sentence."""

    singulars: tuple[str, ...]
    plurals: tuple[str, ...]

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, noun: str) -> Noun:
        """The forms of a noun in the singular or the plural; a possessive is that of its noun."""
        given = re.sub(r"'s?$", "", fold(noun))
        unstopped = given.rstrip(".!")
        if unstopped and unstopped != given:  # Yahoo!, which many write without
            known = cls.of(unstopped)
            return cls((*known.singulars, given), known.plurals)
        one = singular(given)
        _, last = _last_word(one)
        if not last.isalpha() or UNSPACED.search(last):
            return cls((given,), (given + "s",) if last[-1:].isdecimal() and last.isascii() else ())  # two 747s
        if not _LATIN.fullmatch(last):
            unaccented = plain(given)
            same = len(unaccented) > 3 and last not in _TOLD and _LATIN.fullmatch(_last_word(unaccented)[1])
            said = (given, unaccented) if same else (given,)
            return cls(said, tuple(one + "s" for one in said))
        many = {given, fold(plural(given)), fold(plural(one)), fold(str(_inflect(True).plural_noun(one))), *_regular(one)}
        guess = _singular(given)  # menus: not told from a bus, so that both are looked for
        many = {form for form in many if form == given or not _own_noun(_last_word(form)[1])}
        return cls((one,) if guess in (None, one) else (one, str(guess)), tuple(sorted(many - {one})))

    @property
    def forms(self) -> tuple[str, ...]:
        return (*self.singulars, *self.plurals)

    def within(self, text: str) -> bool:
        """Whether the text has the noun as a word of its own, in any case, singular or plural."""
        return _pattern((self,)).search(folded(text)[0]) is not None


def _own_noun(word: str) -> bool:
    """Whether a plural is a noun with a meaning of its own: news are not several of what is new."""
    return _singular(word) == word


def _regular(noun: str) -> tuple[str, ...]:
    """Plurals that people make where the dictionary has another: fishes, spacecrafts, octopi."""
    latin = (noun[:-2] + "i",) if noun.endswith("pus") and len(_last_word(noun)[1]) > 4 else ()  # the dictionary has cacti
    return (noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s"), *latin)


@lru_cache(maxsize=1024)
def _pattern(nouns: tuple[Noun, ...], article: bool = False) -> re.Pattern[str]:
    """Finds the longest of the nouns' forms; with ``article``, the group ``article`` is the one before it."""
    forms = sorted({form for noun in nouns for form in noun.forms if form}, key=len, reverse=True)
    alternatives = "|".join(map(_bounded, forms))
    before = rf"(?:(?<!{letter()})(?P<article>an?|the)\s+)?" if article else ""
    return re.compile(f"{before}(?P<noun>{alternatives})" if forms else r"(?!)")


def _bounded(form: str) -> str:
    last = _last_word(form)[1]
    loose = len(form) > 3 and last not in _TOLD  # Pokemon, which others write Pokémon
    words = r"[\s_\-/]+".join(map(accented if loose else re.escape, form.split(" ")))
    left = "" if UNSPACED.match(form[0]) else rf"(?<!{letter()})"
    right = "" if UNSPACED.match(form[-1]) else rf"(?!{letter()})"
    return left + ("(?:[وفبك]?ال|لل)?" if _PREFIXED.match(form[0]) else "") + words + right


def replace_nouns(text: str, nouns: Sequence[str], other: str) -> str:
    """The text with ``other`` in the place of each of the nouns, in the number and with the article that fit.

    An article of the other's own takes the place of the one before the noun.
    """
    whole = composed(text)
    lowered, places = folded(text)
    known = tuple(Noun.of(noun) for noun in nouns)
    many = {form for noun in known for form in noun.plurals} - set(map(fold, nouns))  # Texas, and what was said as it is
    owned = ARTICLE.match(other)
    found, done = [], 0
    for match in _pattern(known, True).finditer(lowered):
        start, end = places[match.start()], places[match.end() - 1] + 1
        word, before = other, whole[start : places[match.start("noun")]]
        if {fold(match["noun"]), plain(fold(match["noun"]))} & many and other[-1:].isalpha():
            stem = other[owned.end() :] if owned and owned[0][0].lower() == "a" else other
            word = stem if singular(stem) != stem else plural(stem)
        if owned:
            before = ""
        elif match["article"] in ("a", "an"):
            chosen = indefinite(word)
            before = (chosen.capitalize() if before[0].isupper() else chosen) + before[len(match["article"]) :]
        found += [whole[done:start], before, word]
        done = end
    return "".join([*found, whole[done:]])


def article(caption: str) -> str:
    """The caption with every indefinite article as its word wants it: ``a airplane`` is ``an airplane``."""

    def fitting(match: re.Match[str]) -> str:
        chosen = indefinite(match[2])
        return (chosen.capitalize() if match[1][0] == "A" else chosen) + " "

    return re.sub(r"(?<![\w'])([Aa]n?) (?=(\w[\w'-]*))", fitting, caption)


@lru_cache(maxsize=4096)
def indefinite(word: str) -> str:
    """``a`` or ``an``, as the first sound of the word wants it."""
    first = re.split(r"[\s_\-/]", word.strip(), maxsplit=1)[0]
    letter = first[:1].lower()
    if first.islower() and letter.isascii() and letter not in "hueo":
        return "an" if letter in "ai" else "a"
    if not first[:1].isalnum() or not first.isascii():
        return "a"
    return str(_inflect().a(first)).split(" ")[0]
