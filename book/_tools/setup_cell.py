# Setup: installs normsurvey where it is missing (Colab, Kaggle) and never touches an installed torch.
# The scale is "quick": made for a laptop's CPU. For the larger runs, made for one GPU, run this first:
#     import os; os.environ["NORMSURVEY_SCALE"] = "full"
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("normsurvey") is None:
    source = "normsurvey @ git+https://github.com/normsurvey/normsurvey@main"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "--no-deps", source])
    importlib.invalidate_caches()

import normsurvey as ns

device = ns.setup_notebook(seed=0)
