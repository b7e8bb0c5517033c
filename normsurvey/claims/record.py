"""One claim, its criterion and its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Above", "Below", "Between", "Claim", "ClaimFailed", "Equal", "Verdict", "claims_of"]

HOLDS, NEGATIVE = "holds", "does not hold at this scale"
MIME = "application/vnd.normsurvey.claim+json"
EXACT = 1e-6  # a limit this low is met by an identity alone


class ClaimFailed(AssertionError):
    """A measurement that does not meet the criterion of its claim."""


@dataclass(frozen=True)
class Between:
    """Criterion: low <= value <= high."""

    low: float
    high: float

    def accepts(self, value: float) -> bool:
        """Whether ``value`` meets the criterion; NaN never does."""
        return self.low <= value <= self.high

    def margin(self, value: float) -> float:
        """How far inside ``value`` lies: 1 or more is inside, 2 is twice as good as asked, NaN beyond a sign.

        For a limit, the ratio of limit and value; for an interval, 1 / (1 - d) with d the distance to the nearer
        end as a share of half the length, infinite in the middle.
        """
        if self.low == self.high:
            return math.inf if value == self.low else 0.0
        if math.isfinite(self.low) and math.isfinite(self.high):
            off = abs(value - (self.low + self.high) / 2) / ((self.high - self.low) / 2)
            return 1 / off if off else math.inf
        limit = self.low if math.isfinite(self.low) else self.high
        if limit <= 0 or value < 0:
            return math.nan
        better, worse = (value, limit) if math.isfinite(self.low) else (limit, value)
        return better / worse if worse else math.inf

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}"


class Below(Between):
    """Criterion: value < limit."""

    def __init__(self, limit: float):
        super().__init__(-math.inf, limit)

    def accepts(self, value: float) -> bool:
        """Whether ``value`` is below the limit."""
        return value < self.high

    def __str__(self) -> str:
        return f"< {self.high:g}"

    def __repr__(self) -> str:
        return f"Below({self.high:g})"


class Above(Between):
    """Criterion: value >= limit."""

    def __init__(self, limit: float):
        super().__init__(limit, math.inf)

    def __str__(self) -> str:
        return f">= {self.low:g}"

    def __repr__(self) -> str:
        return f"Above({self.low:g})"


class Equal(Between):
    """Criterion: value is exactly this number."""

    def __init__(self, value: float):
        super().__init__(value, value)

    def __str__(self) -> str:
        return f"= {self.low:g}"

    def __repr__(self) -> str:
        return f"Equal({self.low:g})"


@dataclass(frozen=True)
class Claim:
    """A statement that a chapter measures, with its criterion fixed before the measurement.

    Attributes:
        id: ``"<id in the dossier>.<what>"``, such as ``"S3.equivalence"``.
        statement: what is asserted, in our words.
        source: who asserts it.
        measures: the measured quantity, and over which seeds.
        quick: criterion at the quick scale.
        full: criterion at the full scale.
        chapter: notebook that measures it, such as ``"2_theory/scale_invariance"``.
        falsifier: a measurement that has to fail; tests feed it.
        expected: ``"holds"``, or ``"does not hold at this scale"`` with a criterion for that outcome.
        expected_full: the same at the full scale, where it differs.
    """

    id: str
    statement: str
    source: str
    measures: str
    quick: Between
    full: Between
    chapter: str
    falsifier: float
    expected: str = HOLDS
    expected_full: str | None = None

    def __post_init__(self):
        for field, outcome in (("expected", self.expected), ("expected_full", self.expected_full or HOLDS)):
            if outcome not in (HOLDS, NEGATIVE):
                raise ValueError(f"{field}={outcome!r}: choose {HOLDS!r} or {NEGATIVE!r}")

    @property
    def kind(self) -> str:
        """``"exact"``: an identity up to rounding; ``"measured"``: a law or a comparison; or ``"negative"``."""
        if self.expected == NEGATIVE:
            return "negative"
        exact = isinstance(self.quick, Equal) or (isinstance(self.quick, Below) and 0 < self.quick.high <= EXACT)
        return "exact" if exact else "measured"

    def criterion(self, scale: str) -> Between:
        """The criterion at ``scale``, "quick" or "full"."""
        return {"quick": self.quick, "full": self.full}[scale]

    def outcome(self, scale: str) -> str:
        """The verdict that its criterion stands for at ``scale``, "quick" or "full"."""
        return {"quick": self.expected, "full": self.expected_full or self.expected}[scale]

    def check(self, measured: Any, scale: str = "quick") -> Verdict:
        """Verdict on ``measured``; raises :class:`ClaimFailed` where a value does not meet the criterion."""
        values = _labelled(measured)
        if not values:
            raise ValueError(f"measured={measured!r} holds no value for claim {self.id}: pass at least one number")
        criterion = self.criterion(scale)
        failed = {k: v for k, v in values.items() if not criterion.accepts(v)}
        if failed:
            raise ClaimFailed(f"{self.id} asks for {self.measures} {criterion}, and measured are {_listed(failed)}")
        return Verdict(self, criterion, values, self.outcome(scale))


def claims_of(chapter: str) -> Callable[..., Claim]:
    """A maker of claims for one chapter, with one criterion for both scales unless ``full`` gives another.

    It takes id, statement, source, measures, criterion and falsifier in this order, and ``expected``; for the full
    scale ``full``, a criterion, and ``expected_full``.
    """

    def claim(
        id, statement, source, measures, criterion, falsifier, expected=HOLDS, *, full=None, expected_full=None
    ) -> Claim:
        return Claim(
            id, statement, source, measures, criterion, full or criterion, chapter, falsifier, expected, expected_full
        )

    return claim


@dataclass(frozen=True)
class Verdict:
    """A claim, the criterion it was held against, and the values that met it."""

    claim: Claim
    criterion: Between
    measured: dict[str, float]
    outcome: str

    def __str__(self) -> str:
        return f"{self.claim.id} · {self.claim.measures} {self.criterion} · {self.outcome}"

    def __repr__(self) -> str:
        return str(self)

    def show(self) -> Verdict:
        """Print the line that never changes, and display the measured values apart from it."""
        print(self)
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            get_ipython = None
        if get_ipython is None or get_ipython() is None:
            print("measured:", _listed(self.measured))
            return self
        record = {
            "id": self.claim.id, "criterion": str(self.criterion),
            "measured": self.measured, "verdict": self.outcome,
        }  # fmt: skip
        display({"text/markdown": f"*measured:* {_listed(self.measured)}", MIME: record}, raw=True)
        return self

    def _ipython_display_(self):
        """Nothing more: :meth:`show` has said it."""


def _labelled(measured: Any) -> dict[str, float]:
    if isinstance(measured, Mapping):
        return {str(k): float(v) for k, v in measured.items()}
    if hasattr(measured, "flatten"):
        measured = measured.flatten().tolist()
    if isinstance(measured, Iterable):
        return {str(k): float(v) for k, v in enumerate(measured)}
    return {"": float(measured)}


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{k}: {v:.3g}".removeprefix(": ") for k, v in values.items())
