"""Captions for labelled images, so that a data set of classes can teach a text-to-image model words, templates and styles.

Some templates are held out of training: a model that understands them has learned to read, and an erasure that holds for
them took the concept and not the sentence. Words cannot be held out of training (a word never seen means nothing); those
in `HELD_OUT_WORDS` are for an erasure's test and stay out of its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from semu_diffusion.domains.prompts import article
from semu_diffusion.domains.vocabulary import Vocabulary
from semu_diffusion.pipelines.train.picture_styles import PHOTO, STYLES

__all__ = [
    "HELD_OUT_TEMPLATES",
    "HELD_OUT_WORDS",
    "PROMPTS",
    "STYLE_WORDS",
    "TEMPLATES",
    "WORDS",
    "captions",
    "cifar_vocabulary",
    "every_caption",
    "words_of",
]

# The first word is the class's own name in CIFAR-10.
WORDS: dict[str, tuple[str, ...]] = {
    "airplane": ("airplane", "plane", "jet", "aircraft"),
    "automobile": ("automobile", "car", "sedan", "motorcar"),
    "bird": ("bird", "songbird", "sparrow", "fowl"),
    "cat": ("cat", "kitten", "kitty", "tomcat"),
    "deer": ("deer", "stag", "doe", "fawn"),
    "dog": ("dog", "puppy", "hound", "doggy"),
    "frog": ("frog", "toad", "bullfrog", "froglet"),
    "horse": ("horse", "pony", "stallion", "mare"),
    "ship": ("ship", "boat", "vessel", "steamer"),
    "truck": ("truck", "lorry", "pickup", "hauler"),
}
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    PHOTO: ("photo",),
    "sketch": ("pencil sketch", "sketch"),
    "pixel art": ("pixel art",),
    "sepia": ("sepia",),
    "night": ("night",),
    "poster": ("poster",),
}
# The plain sentence of each style.
PROMPTS: dict[str, str] = {
    PHOTO: "a photo of a {}",
    "sketch": "a pencil sketch of a {}",
    "pixel art": "pixel art of a {}",
    "sepia": "a sepia photo of a {}",
    "night": "a {} at night",
    "poster": "a poster of a {}",
}
HELD_OUT_WORDS = frozenset(words[-1] for words in WORDS.values())

TEMPLATES: dict[str, tuple[str, ...]] = {
    PHOTO: (
        "a photo of a {}",
        "a picture of a {}",
        "an image of a {}",
        "a photo of one {}",
        "the photo of the {}",
        "a {}",
        "{}",
    ),
    "sketch": ("a pencil sketch of a {}", "a pencil sketch of one {}", "a sketch of a {}", "a picture of a {}, pencil sketch"),
    "pixel art": ("pixel art of a {}", "pixel art of one {}", "a pixel art picture of a {}", "a picture of a {}, pixel art"),
    "sepia": ("a sepia photo of a {}", "a sepia photo of one {}", "a sepia picture of a {}", "a picture of a {}, sepia"),
    "night": ("a {} at night", "a photo of a {} at night", "one {} at night", "a night photo of a {}"),
    "poster": ("a poster of a {}", "a poster of one {}", "a poster picture of a {}", "a picture of a {}, poster"),
}
HELD_OUT_TEMPLATES: dict[str, tuple[str, ...]] = {
    PHOTO: ("a picture of one {}", "an image of the {}", "the {}"),
    "sketch": ("the pencil sketch of the {}", "an image of a {}, pencil sketch"),
    "pixel art": ("the pixel art of the {}", "an image of a {}, pixel art"),
    "sepia": ("the sepia photo of the {}", "an image of a {}, sepia"),
    "night": ("a picture of a {} at night", "the {} at night"),
    "poster": ("the poster of the {}", "an image of a {}, poster"),
}


def words_of(class_name: str) -> tuple[str, ...]:
    """The words that name a class: its synonyms if it is one of CIFAR-10's, else its own name."""
    return WORDS.get(class_name, (class_name.replace("_", " "),))


def captions(class_name: str, style: str = PHOTO, held_out: bool = False) -> list[str]:
    """Every caption of a class in a style: all templates with all words; or only the templates held out of training."""
    templates = (HELD_OUT_TEMPLATES if held_out else TEMPLATES)[style]
    return [article(template.format(word)) for template in templates for word in words_of(class_name)]


def every_caption(class_names: Sequence[str], held_out: bool = False) -> list[str]:
    """All captions of all classes in all styles, in a fixed order."""
    return [caption for style in STYLES for name in class_names for caption in captions(name, style, held_out)]


def cifar_vocabulary(class_names: Sequence[str], guidance_scale: float = 3.0) -> Vocabulary:
    """What `semu train text-to-image` teaches for a data set of these classes."""
    return Vocabulary(
        objects={name: words_of(name) for name in class_names},
        styles=STYLE_WORDS,
        prompts=PROMPTS,
        templates=TEMPLATES,
        held_out_templates=HELD_OUT_TEMPLATES,
        guidance_scale=guidance_scale,
        judges={"style": "styles"} | ({"object": "embedded"} if set(class_names) <= set(WORDS) else {}),
    )
