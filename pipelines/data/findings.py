"""What a reader of pictures came across, told in one line."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping

__all__ = ["Findings", "Note", "to_stderr"]

Note = Callable[[str], None]
MOST_CLASSES = 12


def to_stderr(line: str) -> None:
    """The `Note` of the command line."""
    print(line, file=sys.stderr)


class Findings:
    """Counts of what was skipped, and of what was read otherwise than it lies there, by the reason."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.remarks: list[str] = []

    def line(self, source: str, total: int, classes: Mapping[str, int] | None = None) -> str:
        """``data: 12 images of 2 classes (cat 6, dog 6); skipped 1 hidden; 2 with transparency, laid on white``."""
        of = ""
        if classes is not None:
            shown = ", ".join(f"{name} {count}" for name, count in list(classes.items())[:MOST_CLASSES])
            more = ", …" if len(classes) > MOST_CLASSES else ""
            of = f" of {len(classes)} class{'' if len(classes) == 1 else 'es'} ({shown}{more})"
        parts = [f"{source}: {total} image{'' if total == 1 else 's'}{of}", *self.remarks]
        if self.skipped:
            parts.append(self.left_out)
        parts += [f"{count} {reason}" for reason, count in self.changed.items()]
        return "; ".join(parts)

    @property
    def left_out(self) -> str:
        return "skipped " + ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
