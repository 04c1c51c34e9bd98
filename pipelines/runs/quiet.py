"""What other libraries print of their own accord."""

from __future__ import annotations

import sys

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Loading bars of diffusers and transformers only for a person at a terminal."""
    if sys.stderr.isatty():
        return
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
