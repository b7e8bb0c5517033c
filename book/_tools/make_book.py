"""`make book` and `make outputs`: execute what changed, assemble, render; or see that nothing changed."""

import argparse
import json
import shutil
import sys
import time

import nbformat

from execute import code_cells, execute_all, executed_path, up_to_date
from project import BUILD, HTML, ROOT, chapter_name, chapters, digest, scale

FILES = ("_config.yml", "_toc.yml", "requirements.lock", "pyproject.toml")
INPUTS = ("book", "notebooks", "normsurvey", "results", *FILES)
STATE = BUILD / "book.digest"
MEASURED = ROOT / "normsurvey" / "claims" / "measured.json"
CLAIM = "application/vnd.normsurvey.claim+json"


def build():
    """Builds the book; returns the exit status. A page is there only if everything behind it is green."""
    state, start = digest(*INPUTS, extra=[scale()]), time.perf_counter()
    index = HTML / "index.html"
    if index.exists() and STATE.exists() and STATE.read_text() == state:
        print(f"Nothing changed since the book was built. Open {index}")
        return 0
    STATE.unlink(missing_ok=True)
    shutil.rmtree(HTML, ignore_errors=True)
    if not run_chapters():
        return 1
    from assemble import assemble
    from render import render

    print("Rendering the book", flush=True)
    assemble()
    if not render():
        print("The book was not built: see the warnings above, each is an error.")
        return 1
    STATE.write_text(state)
    print(f"The book is built, in {time.perf_counter() - start:.0f} s. Open {index}")
    return 0


def write_outputs():
    """Rewrites the outputs that are committed in notebooks/; returns the exit status."""
    for _ in range(2):  # a chapter that reads what the others measured runs again if that is news
        ran = run_chapters()
        for chapter in filter(lambda c: executed_path(c).exists(), chapters()):
            nbformat.write(up_to_date(chapter), ROOT / chapter)
        news = json.dumps(measured(), indent=0) + "\n"
        if news == MEASURED.read_text():
            break
        MEASURED.write_text(news)
        for chapter in chapters():
            if "claims.measured" in (ROOT / chapter).read_text():
                executed_path(chapter).unlink(missing_ok=True)
    print("The outputs in notebooks/ are those of today." if ran else "Outputs of chapters that failed are as before.")
    return 0 if ran else 1


def measured():
    """{claim: {label: value to three digits}}, from the outputs that are committed in notebooks/."""
    found = {}
    for chapter in chapters():
        for cell in code_cells(nbformat.read(ROOT / chapter, as_version=4)):
            for result in (out["data"][CLAIM] for out in cell.outputs if CLAIM in out.get("data", {})):
                found[result["id"]] = {k: float(f"{v:.3g}") for k, v in result["measured"].items()}
    return dict(sorted(found.items()))


def run_chapters():
    """Executes what is not up to date and prints every traceback; returns whether all chapters ran."""
    print(f"Executing the chapters, two at a time ({scale()} scale)", flush=True)
    failed = execute_all()
    for chapter, failure in failed.items():
        print(f"\n{'=' * 20} {chapter_name(chapter)} {'=' * 20}\n{failure}")
    if failed:
        names = ", ".join(map(chapter_name, failed))
        print(f"{len(failed)} of {len(chapters())} chapters failed: {names}")
    return not failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write-outputs", action="store_true", help="rewrite the outputs in notebooks/")
    sys.exit(write_outputs() if parser.parse_args().write_outputs else build())
