"""Executes the chapters, two at a time, into _build/executed, their figures as SVG beside them.

notebooks/ is only read.

A chapter runs again when its code, anything in normsurvey/ or results/, the lock or the scale changed.
Its prose may change freely: the outputs are put into today's text.
"""

import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellTimeoutError, DeadKernelError
from traitlets.config import Config

from jupyter_home import kernel_sockets, private_jupyter_home
from project import EXECUTED, ROOT, chapter_name, chapters, digest, scale

AT_ONCE = 2
CELL_TIMEOUT = 600  # seconds
ANSI = re.compile(r"\x1b\[[0-9;]*m")
STYLED_TABLE = re.compile(r"\bT_[0-9a-f]{5}(?=[_\W])")
ADDRESS = re.compile(r" at 0x[0-9a-f]+(?=>)")


def code_cells(notebook):
    """The cells that are executed."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def freshness_key(chapter, surroundings):
    """Equal keys mean equal code in equal surroundings: stored outputs are still those of the chapter."""
    notebook = nbformat.read(ROOT / chapter, as_version=4)
    code = [(cell.source, sorted(cell.metadata.get("tags", []))) for cell in code_cells(notebook)]
    return digest(extra=(surroundings, json.dumps(code)))


def executed_path(chapter):
    """Where the executed copy of a chapter lies; its key and its seconds lie beside it."""
    return EXECUTED / chapter.relative_to("notebooks")


def figures(chapter):
    """The folder of its figures, 1.svg, 2.svg and so on in the order in which they are shown."""
    return executed_path(chapter).with_suffix(".figures")


def stored(chapter, key):
    """Seconds that the stored execution took, or None where there is none under this key."""
    record = executed_path(chapter).with_suffix(".json")
    if not record.exists() or not executed_path(chapter).exists():
        return None
    entry = json.loads(record.read_text())
    return entry["seconds"] if entry["key"] == key else None


def execute(chapter, key, home):
    """Runs one chapter in a fresh kernel; returns its seconds and, where it failed, what happened."""
    path = executed_path(chapter)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, path.with_suffix(".json")):
        old.unlink(missing_ok=True)
    shutil.rmtree(figures(chapter), ignore_errors=True)
    notebook = nbformat.read(ROOT / chapter, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str((ROOT / chapter).parent)}},
        record_timing=False,
        coalesce_streams=True,
        config=Config({"KernelManager": kernel_sockets(home, chapter.stem)}),
    )
    start = time.perf_counter()
    try:
        client.execute(env=os.environ | {"NORMSURVEY_FIGURES": str(figures(chapter))})
    except DeadKernelError:
        return time.perf_counter() - start, "The kernel ended: it crashed, ran out of memory, or was killed."
    except (CellControlSignal, CellTimeoutError, RuntimeError) as failure:
        return time.perf_counter() - start, ANSI.sub("", str(failure))
    seconds = time.perf_counter() - start
    settle(notebook)
    nbformat.write(notebook, path)
    path.with_suffix(".json").write_text(json.dumps({"key": key, "seconds": round(seconds, 1)}))
    return seconds, None


def settle(notebook):
    """Takes out what differs between equal runs: random names of styled tables, addresses of objects."""
    for cell in code_cells(notebook):
        for number, output in enumerate(cell.outputs):
            data = output.get("data", {})
            for kind in data.keys() & {"text/html", "text/plain"}:
                named = STYLED_TABLE.sub(f"T_{cell.id}-{number}", data[kind])
                data[kind] = ADDRESS.sub("", named)


def execute_all():
    """Brings every chapter up to date, one printed line each; returns {chapter: traceback} of failures."""
    surroundings = digest("normsurvey", "results", "requirements.lock", extra=[scale()])
    keys = {chapter: freshness_key(chapter, surroundings) for chapter in chapters()}
    width = max(len(chapter_name(chapter)) for chapter in keys)
    failed, waiting = {}, {}
    home = private_jupyter_home()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for chapter, key in keys.items():
            seconds = stored(chapter, key)
            if seconds is None:
                waiting[pool.submit(execute, chapter, key, home)] = chapter
            else:
                print(f"  {chapter_name(chapter):{width}}  {seconds:5.1f} s  unchanged", flush=True)
        for future in as_completed(waiting):
            chapter = waiting[future]
            seconds, failure = future.result()
            verdict = "  FAILED" if failure else ""
            print(f"  {chapter_name(chapter):{width}}  {seconds:5.1f} s{verdict}", flush=True)
            if failure:
                failed[chapter] = failure
    return failed


def up_to_date(chapter):
    """Today's notebook with the outputs of its execution."""
    notebook = nbformat.read(ROOT / chapter, as_version=4)
    executed = nbformat.read(executed_path(chapter), as_version=4)
    for cell, ran in zip(code_cells(notebook), code_cells(executed), strict=True):
        cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
    return notebook
