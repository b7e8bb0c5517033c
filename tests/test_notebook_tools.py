"""What the chapters share besides their setup: the scale, and lines of progress where a run takes minutes."""

import pytest

from normsurvey import notebook


def test_progress_is_silent_at_the_quick_scale(monkeypatch, capsys):
    monkeypatch.setenv("NORMSURVEY_SCALE", "quick")
    assert list(notebook.progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_progress_tells_at_the_full_scale_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setenv("NORMSURVEY_SCALE", "full")
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(notebook.time, "monotonic", lambda: float(next(clock)))
    assert list(notebook.progress(range(4), "counting")) == [0, 1, 2, 3]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and lines[0].startswith("counting: ") and " of 4 in " in lines[0] and "left" in lines[0]
    assert lines[-1].startswith("counting: all 4 in ")
    assert list(notebook.progress(iter("ab"), "letters")) == ["a", "b"]
    assert "letters: all 2 in" in capsys.readouterr().out


def test_an_unknown_scale_is_refused(monkeypatch):
    monkeypatch.setenv("NORMSURVEY_SCALE", "large")
    with pytest.raises(ValueError, match="NORMSURVEY_SCALE='large'"):
        list(notebook.progress([1], "one"))
