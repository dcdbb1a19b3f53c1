"""Waiting for events, always with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 20.0
"""Seconds after which an event that should come at once counts as missing."""


def wait_until(
    predicate: Callable[[], T], deadline: float = DEADLINE, *, what: str = "", every: float = 0.01
) -> T:
    """Ask until the answer is true, and return it.

    Args:
        predicate: What to wait for.
        deadline: Seconds to wait at most.
        what: What is missing, for the failure's text.
        every: Seconds between two questions.

    Raises:
        AssertionError: The deadline is over.
    """
    end = time.monotonic() + deadline
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what or predicate}; last: {answer!r}")
        time.sleep(every)
