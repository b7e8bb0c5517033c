"""What the chapters share besides their setup: the scale, and lines of progress where a run takes minutes."""

import nbformat
import pytest
from nbclient import NotebookClient

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


SHOWS = """
import matplotlib.pyplot as plt
for title in ("one", "two"):
    figure, ax = plt.subplots()
    ax.set_title(title)
    plt.show()
"""


def test_every_figure_shown_is_also_an_svg(tmp_path):
    keeps = f"from normsurvey.plots import vector\nvector.keep({str(tmp_path)!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (keeps, SHOWS)])
    NotebookClient(notebook, kernel_name="python3").execute()
    assert ["image/png" in output.data for output in notebook.cells[1].outputs] == [True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.svg", "2.svg"]
    assert all("<svg" in path.read_text() for path in tmp_path.iterdir())
