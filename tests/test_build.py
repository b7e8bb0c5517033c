"""The build itself: what makes a chapter run again, what a failure leaves behind, what is not rewritten."""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_tools"))
import execute  # noqa: E402
import project  # noqa: E402
from jupyter_home import private_jupyter_home  # noqa: E402
from render import LIVE_CODE, dense  # noqa: E402

CHAPTER = Path("notebooks/part/chapter.ipynb")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a chapter of one text cell and one code cell into a project of its own."""
    for module in (execute, project):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(execute, "EXECUTED", tmp_path / "_build" / "executed")
    (tmp_path / CHAPTER).parent.mkdir(parents=True)

    def write(text, code):
        cells = [nbformat.v4.new_markdown_cell(text, id="text"), nbformat.v4.new_code_cell(code, id="code")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / CHAPTER)
        return tmp_path / CHAPTER

    return write


def test_code_and_surroundings_make_a_chapter_run_again_and_prose_does_not(write):
    write("words", "1 + 1")
    first = execute.freshness_key(CHAPTER, "package as it was")
    write("other words", "1 + 1")
    assert execute.freshness_key(CHAPTER, "package as it was") == first
    assert execute.freshness_key(CHAPTER, "package changed") != first
    write("words", "1 + 2")
    assert execute.freshness_key(CHAPTER, "package as it was") != first


@pytest.mark.parametrize("change", ["content", "name", "new file"])
def test_digest_sees_every_change_of_a_folder(write, tmp_path, change):
    folder = tmp_path / "normsurvey"
    folder.mkdir()
    (folder / "a.py").write_text("1")
    (folder / "__pycache__").mkdir()
    before = project.digest("normsurvey", "missing")
    (folder / "__pycache__" / "a.pyc").write_text("generated")
    assert project.digest("normsurvey", "missing") == before
    match change:
        case "content":
            (folder / "a.py").write_text("2")
        case "name":
            (folder / "a.py").rename(folder / "b.py")
        case "new file":
            (folder / "c.py").write_text("")
    assert project.digest("normsurvey", "missing") != before


def test_outputs_join_todays_prose_and_the_chapter_is_only_read(write, tmp_path):
    path = write("words", "print('ran')\nobject()")
    committed = path.read_text()
    _, failure = execute.execute(CHAPTER, "key", private_jupyter_home())
    assert failure is None and path.read_text() == committed
    assert execute.stored(CHAPTER, "key") is not None and execute.stored(CHAPTER, "another key") is None
    write("other words", "print('ran')\nobject()")
    text, code = execute.up_to_date(CHAPTER).cells
    assert text.source == "other words"
    assert [code.outputs[0].text, code.outputs[1].data["text/plain"]] == ["ran\n", "<object>"]
    assert not list(path.parent.glob("[!c]*")), "nothing else is left beside the chapter"


def test_a_failed_chapter_is_told_and_leaves_no_outputs(write):
    write("words", "1 + 1")
    execute.execute(CHAPTER, "key", private_jupyter_home())
    write("words", "1 / 0")
    _, failure = execute.execute(CHAPTER, "new key", private_jupyter_home())
    assert "ZeroDivisionError" in failure and "1 / 0" in failure
    assert not list(execute.executed_path(CHAPTER).parent.iterdir())


def test_live_code_is_left_out():
    kept = '<script src="a.js"></script>'
    loaded = '\n<script async="async" src="_static/sphinx-thebe.js"></script>'
    settings = "\n<script>const THEBE_X = 1</script>"
    assert LIVE_CODE.sub("", kept + loaded + settings) == kept


def test_pages_lose_their_indentation_and_nothing_that_is_read():
    code = "<pre>\n  a\n\n    b\n</pre>"
    page = f"<ul>\n    <li>one <b>two</b>\n      three</li>\n\n\n</ul>\n{code}  \n   <p>four</p>\n"
    assert dense(page) == f"<ul>\n<li>one <b>two</b>\nthree</li>\n</ul>\n{code}\n<p>four</p>\n"
