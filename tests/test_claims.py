"""Claims: complete, falsifiable, and never satisfied by nothing or by NaN."""

import json
import math
from pathlib import Path

import numpy
import pytest
import torch

import normsurvey as ns
from normsurvey.claims import Above, Below, Between, Claim, ClaimFailed, Equal, register
from normsurvey.claims.record import HOLDS, MIME, NEGATIVE, claims_of

IDS = list(ns.claims)
SCALES = ("quick", "full")
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("claim_id", IDS)
def test_every_claim_is_complete(claim_id):
    claim = ns.claims[claim_id]
    assert claim.id == claim_id and "." in claim_id
    for words in (claim.statement, claim.source, claim.measures):
        assert len(words) > 15, words
    assert claim.statement.endswith(".") and not claim.measures.endswith(".")
    assert claim.chapter.partition("/")[0] in ("1_taxonomy", "2_theory", "3_applications")
    assert isinstance(claim.quick, Between) and isinstance(claim.full, Between)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("claim_id", IDS)
def test_every_claim_can_fail(claim_id, scale):
    claim = ns.claims[claim_id]
    for wrong in (claim.falsifier, math.nan, {"seed 0": claim.falsifier}, [claim.falsifier], numpy.array([math.nan])):
        with pytest.raises(ClaimFailed, match=claim_id):
            claim.check(wrong, scale)
    for nothing in ([], {}, torch.zeros(0)):
        with pytest.raises(ValueError, match="holds no value"):
            claim.check(nothing, scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("claim_id", IDS)
def test_every_claim_can_hold_and_its_worst_value_counts(claim_id, scale):
    claim = ns.claims[claim_id]
    criterion = claim.criterion(scale)
    ends = [v for v in (criterion.low, criterion.high) if math.isfinite(v)]
    good = next(v for v in [sum(ends) / len(ends), *(e + d for e in ends for d in (-1.0, 1.0))] if criterion.accepts(v))
    assert claim.outcome(scale) in str(claim.check([good, good], scale))
    with pytest.raises(ClaimFailed):
        claim.check({"seed 0": good, "seed 1": claim.falsifier}, scale)


def test_criteria_at_their_ends():
    cases = [
        (Below(1.0), [0.999, -math.inf], [1.0, math.nan, math.inf]),
        (Above(1.0), [1.0, math.inf], [0.999, math.nan]),
        (Between(0.0, 1.0), [0.0, 1.0], [-1e-9, 1.1, math.nan]),
        (Equal(3), [3], [3.0001, math.nan]),
    ]
    for criterion, good, bad in cases:
        assert all(map(criterion.accepts, good)) and not any(map(criterion.accepts, bad)), criterion
        assert eval(repr(criterion)) == criterion
    assert [str(c) for c, *_ in cases] == ["< 1", ">= 1", "between 0 and 1", "= 3"]


def test_the_outcome_may_differ_at_the_full_scale():
    small, large = Above(2), Below(0.5)
    maker = claims_of("2_theory/x")
    claim = maker("X.y", "A statement.", "someone", "a ratio", small, 1.0, full=large, expected_full=NEGATIVE)
    assert str(claim.check(3.0)).endswith(HOLDS) and str(claim.check(0.1, "full")).endswith(NEGATIVE)
    assert claim.kind == "measured" and claim.check(0.1, "full").outcome == NEGATIVE
    for scale in SCALES:
        with pytest.raises(ClaimFailed):
            claim.check(claim.falsifier, scale)
    with pytest.raises(ValueError, match="expected_full='maybe'"):
        maker("X.y", "A statement.", "someone", "a ratio", small, 1.0, expected_full="maybe")


def test_margins_say_how_far_inside_a_value_lies():
    assert Below(1e-9).margin(1e-12) == pytest.approx(1e3) and Below(1e-9).margin(1e-8) == pytest.approx(0.1)
    assert Above(4).margin(8) == 2 and Above(4).margin(2) == 0.5 and Below(1).margin(0) == math.inf
    assert Between(0.9, 1.1).margin(1.05) == pytest.approx(2) and Between(0.9, 1.1).margin(1.3) == pytest.approx(1 / 3)
    assert Equal(7).margin(7) == math.inf and Equal(7).margin(6) == 0
    assert math.isnan(Below(-1).margin(-2)) and math.isnan(Above(1).margin(-2))


def test_kinds_follow_from_the_criterion():
    kinds = {ns.claims[k].kind for k in IDS}
    assert kinds == {"exact", "measured", "negative"}
    assert ns.claims["M1.one_step"].kind == "exact" and ns.claims["O2.outliers"].kind == "measured"
    assert ns.claims["M1.always_better"].kind == "negative"


def test_measured_values_are_those_of_the_committed_chapters():
    shown = {}
    for path in NOTEBOOKS.rglob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for data in (out["data"][MIME] for out in cell.get("outputs", []) if MIME in out.get("data", {})):
                shown[data["id"]] = {k: float(f"{v:.3g}") for k, v in data["measured"].items()}
    assert ns.claims.measured == shown, "run `make outputs`"
    assert set(shown) == set(IDS)


def test_an_unknown_id_names_the_near_ones():
    with pytest.raises(KeyError) as raised:
        ns.claims.check("M1.one_stp", 0.0)
    assert "M1.one_stp" in str(raised.value) and "M1.one_step" in str(raised.value)


def test_the_verdict_is_one_line_that_never_changes(capsys, monkeypatch):
    monkeypatch.setenv("NORMSURVEY_SCALE", "quick")
    lines = set()
    for value in (1e-20, 3e-14):
        ns.claims.check("M1.one_step", [value] * 5)
        first, second = capsys.readouterr().out.strip().splitlines()
        lines.add(first)
        assert second == f"measured: {', '.join(f'{k}: {value:.3g}' for k in range(5))}"
    (line,) = lines
    assert line.startswith("M1.one_step · ") and line.endswith("< 1e-12 · holds")


def test_tensors_arrays_and_numbers_are_measurements():
    claim = ns.claims["M1.one_step"]
    for measured in (0.0, torch.zeros(3), torch.zeros(()), numpy.zeros((2, 2)), (0.0, 0.0), {"a": torch.tensor(0.0)}):
        assert all(v == 0 for v in claim.check(measured).measured.values())
    with pytest.raises(ClaimFailed, match="b: 0.5"):
        claim.check({"a": 0.0, "b": 0.5})


def test_the_scale_chooses_the_criterion(monkeypatch):
    claim = Claim("T1.test", "A statement.", "a source", "a measure", Below(1.0), Below(0.1), "1_taxonomy/none", 2.0)
    assert claim.check(0.5, "quick") and claim.criterion("full") == Below(0.1)
    with pytest.raises(ClaimFailed):
        claim.check(0.5, "full")
    monkeypatch.setenv("NORMSURVEY_SCALE", "fast")
    with pytest.raises(ValueError, match="NORMSURVEY_SCALE='fast'.*'quick' or 'full'"):
        ns.claims.check("M1.one_step", 0.0)


def test_an_id_is_used_once_and_outcomes_are_known():
    known = ns.claims["M1.one_step"]
    register(known)
    fields = {**vars(known), "statement": "Something else."}
    with pytest.raises(ValueError, match="id='M1.one_step' is registered already"):
        register(Claim(**fields))
    with pytest.raises(ValueError, match="expected='maybe'"):
        Claim(**{**vars(known), "expected": "maybe"})


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.rglob("*.ipynb")), ids=lambda p: p.stem)
def test_chapters_show_their_own_claims_and_all_of_them(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = [out["data"] for cell in cells for out in cell.get("outputs", []) if MIME in out.get("data", {})]
    chapter = path.relative_to(NOTEBOOKS).with_suffix("").as_posix()
    assert sorted(data[MIME]["id"] for data in shown) == sorted(k for k in IDS if ns.claims[k].chapter == chapter)
