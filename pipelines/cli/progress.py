"""Progress on a terminal: one bar at a time, silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["Progress", "bar"]


def bar(stage: str, items: Iterable[Any] | None = None, total: int | None = None, done: int = 0, keep: bool = False) -> Any:
    """A bar of its own over the ``items``, or one to `update` by hand; it goes away at its end unless it is to ``keep``."""
    from tqdm import tqdm

    return tqdm(items, stage, total, keep, initial=done, disable=None)  # None: silent where there is no terminal


class Progress:
    """One progress bar at a time on a terminal, a new one for each stage; silent elsewhere. As a context, closed at its end."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stderr
        self.visible = self.stream is not None and self.stream.isatty()
        self.stage: str | None = None
        self.bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def show(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Show ``done`` of ``total`` in ``stage``."""
        if not self.visible:
            return
        if stage != self.stage:
            from tqdm import tqdm

            self.close()
            self.stage, self.bar = stage, tqdm(total=total, desc=f"{stage:<16}", file=self.stream, leave=True)
        self.bar.update(done - self.bar.n)
        if detail:
            self.bar.set_postfix_str(detail, refresh=False)

    def note(self, text: str) -> None:
        """Print a line of its own, without tearing the bar."""
        self.close()
        print(text, file=self.stream)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.stage = self.bar = None
