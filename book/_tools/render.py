"""Renders the assembled book with every warning an error, and leaves out what its pages never load."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from project import BUILD, HTML, SOURCE

# Jupyter Book puts its live-code extension into every page, twice, though it is switched off.
LIVE_CODE = re.compile(r"\s*<(link|script)\b[^>]*sphinx-thebe[^>]*>(</script>)?|\s*<script>const THEBE_.*?</script>")

# Links from source back to documentation miss their place where a module is documented under two names.
BACK = re.compile(r'<a class="viewcode-back" [^>]*>\[docs\]</a>')

# Line breaks and blanks are text there.
VERBATIM = re.compile(r"(<(pre|script|style|textarea)\b.*?</\2>)", re.DOTALL)

# Theme and extensions bring more than the pages load: source maps, live code, other renderers of MathJax.
UNUSED = ("**/*.map", "**/*.ttf", "_static/locales", "_static/sphinx-thebe.*", "_static/webpack-macros.html")
MATHJAX_USED = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts/woff-v2")


def render():
    """Builds _build/html; returns whether it worked. After a failure there is no page at all."""
    out = BUILD / "render"
    shutil.rmtree(out, ignore_errors=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", SOURCE, "--path-output", out]
    command += ["--all", "-W", "-n", "--keep-going", "-q"]
    plain = os.environ | {"NO_COLOR": "1"}
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=plain)
    (BUILD / "render.log").write_text(finished.stdout)
    if finished.returncode != 0:
        print(finished.stdout)
        return False
    trim(out / "_build" / "html")
    shutil.move(out / "_build" / "html", HTML)
    return True


def trim(html):
    """Removes what no page needs."""
    for page in html.rglob("*.html"):
        page.write_text(dense(BACK.sub("", LIVE_CODE.sub("", page.read_text()))))
    mathjax = html / "_static" / "mathjax"
    for pattern in UNUSED:
        for path in html.glob(pattern):
            remove(path)
    for path in sorted(mathjax.rglob("*")):
        if path.is_file() and not path.relative_to(mathjax).as_posix().startswith(MATHJAX_USED):
            remove(path)


def dense(html):
    """The page without indentation and empty lines, which a browser would skip."""
    parts = VERBATIM.split(html)  # text, verbatim, its tag, text, ...
    parts[::3] = (re.sub(r"\s*\n\s*", "\n", text) for text in parts[::3])
    return "".join(part for number, part in enumerate(parts) if number % 3 != 2)


def remove(path: Path):
    """Removes a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
