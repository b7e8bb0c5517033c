"""What a chapter must be, whatever it tells: readable in Colab, executed, light, the same in its frame."""

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_tools"))
from project import chapter_name, chapters  # noqa: E402
from stamp import setup_cell  # noqa: E402

CLAIM = "application/vnd.normsurvey.claim+json"
CHECK = re.compile(r"\bclaims\.check\(")

# Syntax that only the rendered book knows; GitHub and Colab would show it raw.
BOOK_ONLY = {
    "a MyST role": re.compile(r"\{[\w:-]+\}`"),
    "a MyST directive": re.compile(r"^\s*(`{3,}|:{3,})\{", re.MULTILINE),
    "a MyST target": re.compile(r"^\([\w-]+\)=", re.MULTILINE),
    "a MyST attribute": re.compile(r"\]\{[.#]\w"),
}
# What breaks in Colab, or only works on the author's machine.
FORBIDDEN = {
    "a shell command": re.compile(r"^\s*[!%]", re.MULTILINE),
    "a notebook progress bar": re.compile(r"tqdm\.(notebook|auto)|ipywidgets"),
    "the path of a machine": re.compile(r"(?<![\w.:/])/(home|Users|root|work|tmp|content|mnt)/"),
}


@pytest.fixture(scope="module", params=chapters(), ids=chapter_name)
def chapter(request):
    """A chapter as it is committed."""
    return nbformat.read(ROOT / request.param, as_version=nbformat.NO_CONVERT)


def code(chapter):
    """Its code cells."""
    return [cell for cell in chapter.cells if cell.cell_type == "code"]


def prose(chapter):
    """Its text cells, one after the other."""
    return "\n\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")


def outputs(chapter):
    """(cell, output) of everything that it shows."""
    return [(cell, output) for cell in code(chapter) for output in cell.outputs]


def test_format(chapter):
    nbformat.validate(chapter)
    assert (chapter.nbformat, chapter.nbformat_minor) == (4, 5)
    assert chapter.metadata.kernelspec.name == "python3"
    assert chapter.metadata.keys() <= {"kernelspec", "language_info"}, "no metadata of tools, no widget state"
    assert len({cell.id for cell in chapter.cells}) == len(chapter.cells)


def test_frame(chapter):
    first, opening = chapter.cells[0], code(chapter)[0]
    assert first.cell_type == "markdown" and re.match(r"# \S", first.source), "a chapter opens with its title"
    assert len(re.findall(r"(?m)^# ", prose(chapter))) == 1, "one title"
    assert opening.source == setup_cell(), "the setup cell is not the canonical one: run `make stamp`"
    assert opening.metadata.tags == ["setup"]
    assert len(code(chapter)) <= 20
    assert re.search(r"\d+\s*(?:-|–|to)?\s*\d*\s+minutes", prose(chapter)), "says how long it takes to read"
    assert "<details>" in prose(chapter), "its exercises have hidden answers"


def test_plain_markdown(chapter):
    found = {name: match[0] for name, pattern in BOOK_ONLY.items() if (match := pattern.search(prose(chapter)))}
    assert not found


def test_portable_code(chapter):
    for cell in code(chapter):
        shown = "".join(str(output.get("text", output.get("data", ""))) for output in cell.outputs)
        text = cell.source + "\n" + re.sub(r"[\w+/=]{200,}", "", shown)
        found = {name: match[0] for name, pattern in FORBIDDEN.items() if (match := pattern.search(text))}
        assert not found, cell.id


def test_executed_in_order_without_errors(chapter):
    assert [cell.execution_count for cell in code(chapter)] == list(range(1, len(code(chapter)) + 1))
    for cell, output in outputs(chapter):
        assert output.output_type != "error", cell.id
        assert output.get("name") != "stderr", f"{cell.id} warns: {output.text[:200]}"


def test_figures_are_light_and_described(chapter):
    for cell, output in outputs(chapter):
        for kind, data in output.get("data", {}).items():
            if kind.startswith("image/"):
                assert kind == "image/png" and len(base64.b64decode(data)) <= 100_000, cell.id
                assert len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) >= 20, f"{cell.id}: no alt"
            assert "widget" not in kind, cell.id


def test_verdict_lines_are_compared(chapter):
    """Every check of a claim stands alone in a cell that nbval compares, and left its measured values."""
    for cell in code(chapter):
        checks, tagged = CHECK.findall(cell.source), "nbval-check-output" in cell.metadata.get("tags", [])
        assert bool(checks) == tagged, cell.id
        assert sum(CLAIM in output.get("data", {}) for output in cell.outputs) >= bool(checks), cell.id


def test_links_between_chapters_resolve():
    for path in chapters():
        for link in re.findall(r"\]\(([^)\s]+\.ipynb)[^)]*\)", prose(nbformat.read(ROOT / path, as_version=4))):
            if "://" not in link:
                assert ((ROOT / path).parent / link).resolve().is_file(), f"{path}: {link}"


# A wrong method makes a chapter fail: what `make test` runs over all chapters, here over one, right and wrong.

CHAPTER = "notebooks/1_taxonomy/why_normalize.ipynb"
SOURCE = "normsurvey/operations/whitening.py"
RIGHT, WRONG = "entries.minus(location)", "entries.minus(-location)"


def nbval(project):
    """Runs the chapter under nbval in a copy of the project; returns whether it passed, and what was said."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env", "-x"]
    environment = os.environ | {"PYTHONPATH": str(project), "NORMSURVEY_SCALE": "quick"}
    ran = subprocess.run([*command, CHAPTER], cwd=project, env=environment, capture_output=True, text=True)
    return ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture
def project(tmp_path):
    """A copy of what a chapter needs."""
    shutil.copytree(ROOT / "normsurvey", tmp_path / "normsurvey")
    shutil.copytree(ROOT / "book" / "_tools", tmp_path / "book" / "_tools")
    (tmp_path / CHAPTER).parent.mkdir(parents=True)
    for path in (CHAPTER, "notebooks/conftest.py"):
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_a_chapter_passes_with_the_right_sign_and_fails_with_the_wrong_one(project):
    passed, said = nbval(project)
    assert passed, said
    text = (project / SOURCE).read_text()
    assert text.count(RIGHT) == 1, f"{SOURCE} changed: name another sign to change"
    (project / SOURCE).write_text(text.replace(RIGHT, WRONG))
    passed, said = nbval(project)
    assert not passed and "ClaimFailed" in said, said
