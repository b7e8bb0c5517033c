"""A Jupyter home of our own: kernels neither see the reader's settings nor leave files in the home."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path


def private_jupyter_home():
    """Points Jupyter and IPython of this process and its kernels at an empty folder, and returns it."""
    home = Path(tempfile.mkdtemp(prefix="normsurvey-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in ("config", "data", "runtime", "ipython"):
        (home / name).mkdir()
    settings = {"KernelManager": kernel_sockets(home, "kernel")}
    (home / "config" / "jupyter_config.json").write_text(json.dumps(settings))
    os.environ.update(
        JUPYTER_CONFIG_DIR=str(home / "config"),
        JUPYTER_DATA_DIR=str(home / "data"),
        JUPYTER_RUNTIME_DIR=str(home / "runtime"),
        JUPYTER_PREFER_ENV_PATH="1",
        IPYTHONDIR=str(home / "ipython"),
    )
    return home


def kernel_sockets(home, name):
    """Settings of a kernel that talks over Unix sockets of this name instead of TCP.

    Two kernels that start at once then never guess the same port, and none warns of an unencrypted line.
    """
    return {"transport": "ipc", "ip": str(home / "runtime" / name)}
