"""Where things are, and a digest that tells when they changed."""

import hashlib
import os
import platform
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
EXECUTED = BUILD / "executed"
SOURCE = BUILD / "source"
HTML = BUILD / "html"

# measured.json repeats outputs of chapters: they do not become stale by being written down.
GENERATED = {"__pycache__", ".ipynb_checkpoints", "measured.json"}


def scale():
    """The scale that the chapters run at: quick, unless NORMSURVEY_SCALE says full."""
    return os.environ.get("NORMSURVEY_SCALE", "quick")


def chapters():
    """The notebooks of the book in reading order, as paths relative to the root, from _toc.yml."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [Path(f"{file}.ipynb") for file in files if file.startswith("notebooks/")]


def metadata():
    """Address, version and revision from pyproject.toml, the only place where they are written by hand."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    urls = data["project"]["urls"]
    return {
        "version": data["project"]["version"],
        "repository": urls["Repository"],
        "book": urls["Book"],
        "revision": data["tool"]["normsurvey"]["revision"],
    }


def chapter_name(chapter):
    """The short name by which a chapter is shown, as in 2_theory/conditioning."""
    return re.sub(r"^notebooks/|\.ipynb$", "", chapter.as_posix())


def digest(*roots, extra=()):
    """A hash of every file below the roots, names included, and of the extra strings."""
    total = hashlib.sha256(repr((platform.python_version(), tuple(extra))).encode())
    for root in roots:
        path = ROOT / root
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not GENERATED.intersection(file.parts):
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                total.update(f"{file.relative_to(ROOT).as_posix()} {content}\n".encode())
    return total.hexdigest()
