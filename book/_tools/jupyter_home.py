"""A Jupyter home of our own: kernels neither see the reader's settings nor leave files in the home."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path


def private_jupyter_home():
    """Points Jupyter and IPython of this process and its children at an empty temporary folder.

    Kernels talk over Unix sockets instead of TCP: no port is guessed twice when two start at once, and the
    kernel does not warn of an unencrypted line.
    """
    home = Path(tempfile.mkdtemp(prefix="normsurvey-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in ("config", "data", "runtime", "ipython"):
        (home / name).mkdir()
    (home / "config" / "jupyter_config.json").write_text(json.dumps({"KernelManager": {"transport": "ipc"}}))
    os.environ.update(
        JUPYTER_CONFIG_DIR=str(home / "config"),
        JUPYTER_DATA_DIR=str(home / "data"),
        JUPYTER_RUNTIME_DIR=str(home / "runtime"),
        JUPYTER_PREFER_ENV_PATH="1",
        IPYTHONDIR=str(home / "ipython"),
    )
