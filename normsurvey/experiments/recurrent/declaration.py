"""What the chapter on recurrent networks runs, fixed before anything was run.

Three tasks, four arms, one grid of learning rates for every arm, three seeds. An arm is judged by its best learning
rate: the one with the lowest training loss, averaged over the seeds and over the last fifth of the steps. The
criteria are in :mod:`normsurvey.claims.applications`.
"""

from dataclasses import dataclass

SEEDS = (0, 1, 2)
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
#: Fraction of the steps, at the end of training, whose mean loss is "the training loss" of a run.
LAST = 0.2
#: Norm of the gradient at which a run is clipped.
CLIP = 1.0


@dataclass(frozen=True)
class Arm:
    """One way to normalize the LSTM: ``norm`` is an id of the catalogue or ``None``; ``gamma`` its initial gain."""

    label: str
    norm: str | None
    gamma: float = 1.0


ARMS = (
    Arm("none", None),
    Arm("LN", "LayerNorm"),
    Arm("BN, gamma 0.1", "BatchNorm", gamma=0.1),
    Arm("BN, gamma 1", "BatchNorm"),
)

#: The names of the tasks: long sequences, real text, varying lengths with masks.
TASKS = ("digits", "text", "ink")


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale; ``length`` and ``steps`` are per task. ``zoom`` magnifies the digits of the long task."""

    hidden: int
    batch: int
    length: dict[str, int]
    steps: dict[str, int]
    zoom: int = 1


SCALES = {
    "quick": Scale(
        hidden=16,
        batch=16,
        length=dict(digits=64, text=20, ink=17),
        steps=dict(digits=100, text=100, ink=80),
    ),
    "full": Scale(
        hidden=64,
        batch=64,
        length=dict(digits=256, text=64, ink=17),
        steps=dict(digits=1000, text=2000, ink=1000),
        zoom=2,
    ),
}
