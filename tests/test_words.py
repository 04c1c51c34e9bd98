"""Promises of words: a noun is found however it is written, and what is erased is never retained."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from semu_diffusion.domains.config import ConceptErasureConfig
from semu_diffusion.domains.plan import plan_words
from semu_diffusion.domains.prompts import contains, listed, retained, with_anchor, with_article
from semu_diffusion.errors import InputError
from semu_diffusion.names.words import article, bare, find_name, match_names, named, plural, singular
from semu_diffusion.options import listed_names
from semu_diffusion.pipelines.train.captions import cifar_vocabulary

ACCENTED = {"rosé": "rose", "résumé": "resume", "maté": "mate", "pâté": "pate", "exposé": "expose"}  # other words
PLURALS = {
    "fox": "foxes", "church": "churches", "puppy": "puppies", "child": "children", "wolf": "wolves", "bus": "buses",
    "butterfly": "butterflies", "glass": "glasses", "mouse": "mice", "person": "people", "knife": "knives", "goose": "geese",
    "cookie": "cookies", "shoe": "shoes", "sheep": "sheep", "cassette player": "cassette players", "lens": "lenses",
    "bird of prey": "birds of prey", "panda": "pandas", "kiwi": "kiwis", "cactus": "cactuses", "hero": "heroes",
}  # fmt: skip


@pytest.mark.parametrize(("one", "many"), PLURALS.items())
def test_a_noun_and_its_plural_are_one(one: str, many: str) -> None:
    assert (plural(one), singular(many), singular(one)) == (many, one, one)
    for said, prompt in ((one, f"two {many} in the snow"), (many, f"a photo of a {one}"), (one.upper(), f"{many}, at night")):
        assert contains(prompt, said)
        with_it = [prompt, "a photo of a castle"]
        assert retained(with_it, [said]) == ["a photo of a castle"]


@pytest.mark.parametrize("name", ["van gogh", "sea lion", "pizza box", "pencil sketch of a cat"])
def test_letters_of_an_article_inside_a_name_are_none(name: str) -> None:
    assert bare(f"The {name}") == bare(name) == name
    (one,), _ = plan_words(ConceptErasureConfig(concept=(name,), forget_prompts=(f"a picture of {name}",)), None)
    assert one.words == (name,)
    assert one.answers("the moon") == ["a picture of the moon"]
    assert one.sentence(f"a picture of {name}") == "a picture of {}"


def test_the_plural_of_a_plural_is_no_other_concept() -> None:
    """Of words that end in s it cannot be told whether they are plurals: both are looked for."""
    assert contains("a menu on the wall", "menus")
    assert contains("cacti in the desert", "cactus")
    plans, _ = plan_words(ConceptErasureConfig(concept=("cat", "Cats", "a cat", "dog")), None)
    assert [one.concept for one in plans] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("prompt", "word", "found"),
    [
        ("一只猫的照片", "猫", True),
        ("一只cat的照片", "cat", True),
        ("猫の写真", "猫", True),
        ("고양이가 자고 있다", "고양이", True),
        ("รูปแมว", "แมว", True),
        ("1girl, black_cat, cat_ears", "cat", True),
        ("a_long_haired_cat", "long haired", True),
        ("a painting in the van-gogh style", "Van Gogh", True),
        ("the cat's pyjamas", "cat", True),
        ("the cats\u2019 pyjamas", "cat", True),
        ("a catalogue of concatenated cattle", "cat", False),
        ("an İstanbul street", "istanbul", True),
        ("a street in ISTANBUL", "İstanbul", True),
        ("EINE STRASSE", "straße", True),
        ("ΟΔΟΣ", "οδος", True),
        ("a pokemon", "Pokémon", True),
        *((f"a red {plain}", accented, False) for accented, plain in ACCENTED.items()),
        *((f"two {plain}s", f"{accented}s", False) for accented, plain in ACCENTED.items()),
        ("a glass of rosés", "rosé", True),
        ("the news", "new", False),
        ("the news", "news", True),
        ("two jesi", "Jesus", False),
        ("los gatos", "gato", True),
        ("a Pokémon", "pokemon", True),
        ("a portrait of Beyonce", "Beyoncé", True),
        ("a painting by Salvador Dalí", "salvador dali", True),
        ("a painting by salvador dali", "Salvador Dalí", True),
        ("a castle by Zdzisław Beksiński", "zdzislaw beksinski", True),
        ("two cafés", "cafe", True),
        *((f"a red {accented}", plain, False) for accented, plain in ACCENTED.items()),
        ("two Boeing 747s", "boeing 747", True),
        ("spider\u2011man and Van\u2013Gogh", "Spider-Man", True),
        ("Van\u2013Gogh", "van gogh", True),
        ("ΜΙΑ ΓΑΤΑ", "γάτα", True),
        ("зелёная ёлка", "елка", True),
        ("IŞIK", "ışık", True),
        ("une photo de l\u2019avion", "avion", True),
        ("صورة القطة", "قطة", True),
        ("قِطَّة بيضاء", "قطة", True),
        ("صورة كلب", "لب", False),
        ("the yahoo logo", "Yahoo!", True),
        ("robert downey jr at work", "Robert Downey Jr.", True),
    ],
)
def test_a_word_is_found_in_every_script_and_writing(prompt: str, word: str, found: bool) -> None:
    for form in ("NFC", "NFD"):
        for other in ("NFC", "NFD"):
            assert contains(unicodedata.normalize(form, prompt), unicodedata.normalize(other, word)) is found


@pytest.mark.parametrize(
    ("prompt", "word", "anchor", "expected"),
    [
        ("一只猫的照片", "猫", "狗", "一只狗的照片"),
        ("two foxes in the snow", "fox", "dog", "two dogs in the snow"),
        ("two foxes in the snow", "fox", "a wolf", "two wolves in the snow"),
        ("A fox", "fox", "owl", "An owl"),
        ("an owl", "owl", "unicorn", "a unicorn"),
        ("a map of Texas", "Texas", "France", "a map of France"),
        ("black_cat, sitting", "cat", "dog", "black_dog, sitting"),
        ("a university, a cat, an hour", "cat", "dog", "a university, a dog, an hour"),
        ("cafe\u0301 by night", "café", "bar", "bar by night"),
        ("the cat's face", "cat", "dog", "the dog's face"),
        ("two Pokémons at night", "pokemon", "dog", "two dogs at night"),
        ("صورة القطة", "قطة", "كلب", "صورة كلب"),
    ],
)
def test_the_anchor_stands_as_the_word_stood(prompt: str, word: str, anchor: str, expected: str) -> None:
    assert with_anchor(prompt, [word], anchor) == expected


WRITINGS = [
    ("cat.", "a photo of a cat"), ('"cat"', "a photo of a cat"), ("\u201ccat\u201d", "a cat"), ("(cat:1.3)", "two cats"),
    ("((cat))", "a cat"), ("cat!", "a cat"), ("\uff43\uff41\uff54", "a cat"), ("cat", "a \uff43\uff41\uff54"),
    ("cat\u200b", "a cat"), ("\u200fقطة", "صورة قطة"), ("बिल्ली", "एक बिल्ली की तस्वीर"), ("\u2764", "a \u2764\ufe0f"),
    ("ネコ", "\uff88\uff7aの写真"), ("ガ", "\uff76\uff9e"), ("Pokémon", "two pokemons"), ("fish", "two fishes"),
    ("octopus", "octopi"), ("spacecraft", "spacecrafts"),
    ("\uff08猫\uff09", "一只猫"), ("《星夜》", "星夜的照片"), ("»Katze«", "eine Katze"),
    ("\u201aKatze\u2018", "eine Katze"), ("¿gato?", "un gato"), ("cat…", "a cat"),
]  # fmt: skip


@pytest.mark.parametrize(("concept", "prompt"), WRITINGS)
def test_what_is_erased_is_not_retained_however_both_are_written(concept: str, prompt: str) -> None:
    config = ConceptErasureConfig(concept=(concept,), retain_prompts=(prompt, "a tree"))
    (one,), kept = plan_words(config, None)
    assert kept == ["a tree"]
    assert contains(one.prompts[0], one.concept)
    assert not set('"().!') & set(one.prompts[0])
    assert one.answers("dog")[0] == "a photo of a dog"


def test_vowel_signs_and_accents_are_letters_of_their_word() -> None:
    assert not contains("एक बिल्ली", "बिल")  # a burrow is no cat
    assert with_anchor("एक बिल्ली", ["बिल"], "x") == "एक बिल्ली"
    assert not contains("a q\u0306 sign", "q")


@pytest.mark.parametrize("concept", ["cat, dog", "cat,dog", "nudity; sexual", "猫、犬"])
def test_a_list_in_one_argument_is_refused(concept: str) -> None:
    with pytest.raises(InputError, match=r"is a list: name several concepts as words of their own .* --synonyms"):
        plan_words(ConceptErasureConfig(concept=(concept,)), None)
    (one,), _ = plan_words(ConceptErasureConfig(concept=(concept,)), None, erased=True)  # by a patch of earlier
    assert one.concept == concept
    (one,), _ = plan_words(ConceptErasureConfig(concept=("10,000 Maniacs",)), None)
    assert contains(one.prompts[0], "10,000 Maniacs")
    (one,), _ = plan_words(ConceptErasureConfig(concept=("Paris, France",), forget_prompts=("a map of Paris, France",)), None)
    assert one.prompts == ("a map of Paris, France",)


@pytest.mark.parametrize("concept", ["", " ", "\u3000", "\u200b", ".", "''", "()"])
def test_a_concept_without_a_word_is_refused(concept: str) -> None:
    with pytest.raises(InputError, match="the concept is empty"):
        ConceptErasureConfig(concept=("dog", concept))


@pytest.mark.parametrize("wrong", [{"concept": (["cat", "dog"],)}, {"concept": ("cat",), "anchor": 5}, {"concept": (3,)}])
def test_what_is_no_text_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a concept or prompt is text, several are values of their own"):
        ConceptErasureConfig(**wrong)


def test_names_with_marks_of_their_own_keep_them() -> None:
    names = (
        "C++",
        "C#",
        "U.S.A.",
        "<sks>",
        "O'Keeffe",
        "Days of Summer (film)",
        "Dr. Who",
        "AT&T",
        "🐱",
        "\u2764\ufe0f",
        "👨\u200d👩\u200d👧",
        "می\u200cروم",
        "Van Gogh's",
        "(cat) and (dog)",
        '"cat" and "dog"',
        "(2:1)",
        "[V]",
        "Robert Downey Jr.",
        "Yahoo!",
    )
    assert tuple(map(named, names)) == names


def test_a_text_that_is_not_in_utf_8_is_said_to_be(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "prompts.txt"
    for content in ("a café".encode("latin-1"), "a cat".encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(InputError, match="save it as UTF-8"):
            listed([str(path)])


def test_articles_follow_the_sound() -> None:
    wanted = "an hour, a university, an elephant, an MRI scan, a European, an owl, a one-eyed owl, a house, a unicorn, an X-ray"
    assert article(wanted.replace("an ", "a ")) == wanted
    assert article(wanted.replace("a ", "an ").replace("an an", "an")) == wanted
    assert with_article("a photo of a {}", "wolves") == "a photo of wolves"
    assert with_article("a photo of a {}", "bus") == "a photo of a bus"


@pytest.mark.parametrize("concept", ["horses", "deer", "Airplanes"])
def test_a_vocabulary_knows_its_objects_in_the_plural(concept: str) -> None:
    vocabulary = cifar_vocabulary(("airplane", "deer", "horse"))
    subject = vocabulary.subject(concept)
    assert subject is not None
    assert subject.name == singular(concept).lower()


def test_a_byte_order_mark_is_no_letter_of_the_first_prompt(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "prompts.TXT").write_bytes(b"\xef\xbb\xbfa photo of a cat\r\n# of cats:\r\n\r\n\ta cat \r\n")
    assert listed([str(tmp_path / "prompts.TXT")]) == ("a photo of a cat", "a cat")


def test_a_name_is_found_in_any_writing_and_by_its_words() -> None:
    names = ("tench, Tinca tinca", "T-shirt/top", "Großer Hund", "crane, bird", "crane, machine", "black_cat")
    found = {name: find_name(name, names) for name in ("tench", "TINCA TINCA", "t shirt top", "grosser hund", "black cat")}
    assert found == {"tench": 0, "TINCA TINCA": 0, "t shirt top": 1, "grosser hund": 2, "black cat": 5}
    assert find_name("crane", names) is None  # two of them
    assert find_name("crane, bird", names) == 3
    assert match_names(("Cats", "dog", "tench, Tinca tinca", "eel"), ("cat", "DOG", "tench")) == [0, 1, 2, None]


def test_names_with_commas_can_be_given_by_repeating_the_flag() -> None:
    assert listed_names(["red,green, blue"]) == ("red", "green", "blue")
    assert listed_names(["tench, Tinca tinca", "ship"]) == ("tench, Tinca tinca", "ship")
    assert listed_names(["a,b", "c"]) == ("a", "b", "c")
