"""Letters as people and keyboards write them: composed or not, wide, accented, with vowel signs or without.

Two ways of writing are the same if `fold` makes them equal: Unicode's composed and decomposed letters (NFC, NFD), upper and
lower case in any script, what is left out as often as written (the vowel signs of Arabic and Hebrew, the accents of Greek
capitals, the dots of ё), every apostrophe, and blanks, underscores, hyphens and slashes between words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

__all__ = ["UNSPACED", "accented", "composed", "fold", "folded", "letter", "plain"]

# Thai to Burmese, Khmer, kana, Chinese characters, Hangul (particles follow at once): no blank ends a word
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
UNSPACED = re.compile(f"[{_UNSPACED}]")
_WIDE = re.compile("[\uff00-\uffef]+")  # Latin letters as wide as Chinese ones, kana half as wide
# directions, joiners, variants; the dot of a Turkish I, an accent that no letter has built in; Hebrew and Arabic vowels
_UNSEEN = re.compile(
    "[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff\u0301\u0307"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670]"
)
_SAME = str.maketrans("άέήίόύώёı\u2018\u2019\u02bc\u00b4\u2010\u2011\u2012\u2013", "αεηιουωеi''''----")
_BETWEEN = re.compile(r"[\s_\-/]+")
_STROKES = str.maketrans("łøđ", "lod")  # Unicode calls these letters of their own


def fold(text: str) -> str:
    """The text as it is compared: composed, without case, one blank between words."""
    return _BETWEEN.sub(" ", folded(text)[0]).strip()


def folded(text: str) -> tuple[str, list[int]]:
    """The composed text without case, and for each of its letters the one of `composed` that it comes from."""
    letters, places = [], []
    for place, one in enumerate(composed(text)):
        for part in _UNSEEN.sub("", one.casefold()).translate(_SAME):
            letters.append(part)
            places.append(place)
    return "".join(letters), places


def composed(text: str) -> str:
    """NFC, with the letters of East Asian keyboards at their usual width."""
    return unicodedata.normalize("NFC", _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]), text))


def plain(text: str) -> str:
    """The text without accents: Pokémon is Pokemon."""
    apart = unicodedata.normalize("NFD", text.translate(_STROKES))
    return "".join(one for one in apart if not unicodedata.combining(one))


@lru_cache(maxsize=1)
def letter() -> str:
    """A letter of a script with blanks between words: Hindi's vowels and the accents that no letter has built in are marks."""
    marks = (chr(code) for code in range(0x300, 0xFE00) if unicodedata.category(chr(code))[0] == "M")
    return rf"(?:[^\W_{_UNSPACED}]|[{''.join(mark for mark in marks if not UNSPACED.match(mark))}])"


@lru_cache(maxsize=1)
def _accents() -> dict[str, str]:
    """For each Latin letter it and those with an accent, as a set of letters."""
    every = [chr(code) for code in (*range(ord("a"), ord("z") + 1), *range(0xC0, 0x250), *range(0x1E00, 0x1F00))]
    small = [one for one in every if one == one.casefold()]
    return {base: f"[{''.join(one for one in small if plain(one) == base)}]" for base in "abcdefghijklmnopqrstuvwxyz"}


def accented(word: str) -> str:
    """A pattern of the folded word, whose Latin letters may have an accent."""
    return "".join(_accents().get(one) or re.escape(one) for one in word)
