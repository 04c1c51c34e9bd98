"""One progress bar at a time on a terminal, silent elsewhere."""

from __future__ import annotations

from typing import Any

__all__ = ["Bars"]


class Bars:
    """One progress bar at a time on a terminal, a new one for each stage; silent elsewhere."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.visible = stream, stream.isatty()
        self.stage: str | None = None
        self.bar: Any = None

    def show(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """``done`` of ``total`` in ``stage``."""
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
        """A line of its own, without tearing the bar."""
        self.close()
        print(text, file=self.stream)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.stage = self.bar = None
