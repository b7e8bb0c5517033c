# Setup: installs normsurvey where it is missing (Colab, Kaggle); torch stays as it is.
# The scale is "quick", a minute or less on a CPU. Larger runs, made for one GPU:
#     import os; os.environ["NORMSURVEY_SCALE"] = "full"  # before this cell
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("normsurvey") is None:
    source = "normsurvey @ git+https://github.com/normsurvey/normsurvey@main"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.check_call([*pip, source])
    importlib.invalidate_caches()

import normsurvey as ns

device = ns.setup_notebook(seed=0)
