"""Recurrent networks with normalization: a declaration made before any run, tasks, cells, training, measurements."""

from .declaration import ARMS, LEARNING_RATES, SCALES, SEEDS, TASKS, Arm, Scale
from .gain import expected_gain, gradient_gain, measured_gradient_gain
from .inference import Moments, held_out_losses, mismatch, moments, pooled, subset, with_statistics
from .lstm import LSTM, PerStep
from .tasks import ALPHABET, Batch, InkPixels, PythonText, SerialDigits, task
from .training import Curves, answer_losses, network_losses, select, to, train_grid

__all__ = [
    "ALPHABET", "ARMS", "Arm", "Batch", "Curves", "InkPixels", "LEARNING_RATES", "LSTM", "Moments", "PerStep",
    "PythonText", "SCALES", "SEEDS", "Scale", "SerialDigits", "TASKS", "answer_losses", "expected_gain",
    "gradient_gain", "held_out_losses", "measured_gradient_gain", "mismatch", "moments", "network_losses",
    "pooled", "select", "subset", "task", "to", "train_grid", "with_statistics",
]  # fmt: skip
