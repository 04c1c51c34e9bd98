"""Captions for labelled images, so that a data set of classes can teach a text-to-image model words, templates and styles.

Some templates are held out of training: a model that understands them has learned to read, and an erasure that holds for
them took the concept and not the sentence. Words cannot be held out of training (a word never seen means nothing); those
in `HELD_OUT_WORDS` are for an erasure's test and stay out of its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from semu_diffusion.assets import folder
from semu_diffusion.domains.prompts import article
from semu_diffusion.domains.vocabulary import Vocabulary, read_vocabulary
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

_VOCABULARY = read_vocabulary(folder("tiny-sd"))  # of the embedded model, which was taught by them
assert _VOCABULARY is not None
WORDS = _VOCABULARY.objects  # of each class of CIFAR-10, its own name first
STYLE_WORDS, PROMPTS = _VOCABULARY.styles, _VOCABULARY.prompts
TEMPLATES, HELD_OUT_TEMPLATES = _VOCABULARY.templates, _VOCABULARY.held_out_templates
HELD_OUT_WORDS = frozenset(words[-1] for words in WORDS.values())


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
