"""What every method ends in: an edit that goes on a model and comes off again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Edit"]


class Edit(Protocol):
    """A patch, new weights, or another table of conditions."""

    @property
    def trained_parameters(self) -> int:
        """How many numbers the method could change."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what has to be kept to make the edit again."""
        ...

    def applied(self, model: Any) -> AbstractContextManager[Any]:
        """Inside, the edited model; afterwards ``model`` is as before, to the last bit."""
        ...
