"""What the chapters share besides their setup: the scale, and lines of progress where a run takes minutes."""

import subprocess
import sys

import pytest

from normsurvey import notebook
from normsurvey.plots import vector


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


def test_figures_are_kept_only_where_a_notebook_shows_them(tmp_path):
    with pytest.raises(RuntimeError, match="folder="):
        vector.keep(tmp_path)


SHELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
from normsurvey.plots import vector
vector.keep(sys.argv[1])
import matplotlib.pyplot as plt
for title in ("one", "two"):
    figure, ax = plt.subplots()
    ax.set_title(title)
    png = shell.display_formatter.formatters["image/png"](figure)
    assert png, "the notebook still shows a picture"
"""


def test_every_figure_shown_is_also_an_svg(tmp_path):
    done = subprocess.run([sys.executable, "-c", SHELL, tmp_path / "x"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["1.svg", "2.svg"]
    assert all("<svg" in p.read_text() for p in (tmp_path / "x").iterdir())
