"""How nbval reads the chapters: verdict lines are compared, measured values and warnings are not."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_tools"))
from jupyter_home import private_jupyter_home  # noqa: E402  (the path above makes it importable)

collect_ignore = ["conftest.py"]  # it holds no doctest
NOT_COMPARED = ("stderr", "text/markdown", "application/vnd.normsurvey.claim+json")

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("NORMSURVEY_SCALE", "quick")
private_jupyter_home()


def pytest_collectstart(collector):
    """The values differ between machines, the verdicts that they lead to must not."""
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += NOT_COMPARED
