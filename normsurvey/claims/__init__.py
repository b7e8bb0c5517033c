"""What the book asserts: a statement, where it comes from, and the criterion that a measurement has to meet."""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import json
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from ..notebook import scale
from .record import Above, Below, Between, Claim, ClaimFailed, Equal, Verdict

__all__ = ["Above", "Below", "Between", "Claim", "ClaimFailed", "Claims", "Equal", "Verdict", "claims", "register"]

# Every module beside this one holds the claims of one part of the book.
PARTS = tuple(m.name for m in pkgutil.iter_modules(__path__) if m.name != "record")

_CLAIMS: dict[str, Claim] = {}


def register(*claims: Claim) -> None:
    """Add claims to the book's list; an id can be used once."""
    for claim in claims:
        if claim.id in _CLAIMS and _CLAIMS[claim.id] != claim:
            raise ValueError(f"id={claim.id!r} is registered already, with another text: choose another id")
        _CLAIMS[claim.id] = claim


class Claims(Mapping):
    """A mapping from id to :class:`Claim`, filled from the modules of this package on first use."""

    def _all(self) -> dict[str, Claim]:
        for part in PARTS:
            importlib.import_module(f"{__name__}.{part}")
        return _CLAIMS

    def __getitem__(self, claim_id: str) -> Claim:
        from ..registry import near

        known = self._all()
        if claim_id not in known:
            raise KeyError(f"claim {claim_id!r} is not registered: {near(claim_id, known)}")
        return known[claim_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @functools.cached_property
    def measured(self) -> dict[str, dict[str, float]]:
        """What the book's chapters measured when their outputs were last committed: id -> label -> value.

        Three digits, at the quick scale on a CPU; written together with those outputs.
        """
        stored = importlib.resources.files(__package__) / "measured.json"
        return json.loads(stored.read_text(encoding="utf-8"))

    def check(self, claim_id: str, measured: Any) -> Verdict:
        """Hold a measurement against a claim's criterion for the present scale.

        Args:
            claim_id: id of the claim.
            measured: a number, an array, or a mapping from labels to numbers; every value has to meet the criterion.

        Returns:
            The verdict. In a notebook it shows one line that never changes (id, criterion, verdict), and the
            measured values apart from it.

        Raises:
            ClaimFailed: where a value does not meet the criterion, whatever outcome was expected.
            ValueError: for no values at all.
        """
        return self[claim_id].check(measured, scale()).show()


claims = Claims()
