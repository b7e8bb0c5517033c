"""What the chapter "Equilibrium" asserts: where weight decay and normalization settle, and where they do not."""

from . import Above, Below, Between, Equal, register
from .record import HOLDS, NEGATIVE, claims_of

CHAPTER = "2_theory/equilibrium"
MOTION = "Wan et al., Spherical Motion Dynamics, NeurIPS 2021, arXiv 2006.08419"
ROTATION = "Kosson, Messmer and Jaggi, Rotational Equilibrium, ICML 2024, arXiv 2305.17212"
PERIODIC = "Lobacheva et al., On the Periodic Behavior of Neural Network Training, NeurIPS 2021, arXiv 2106.15739"
DOMINATION = "Huang et al., Layer-wise Conditioning Analysis, ECCV 2020, arXiv 2002.10801"
LAST = "root mean square over the last quarter of the steps"
EACH = "each layer and each of 3 seeds"
_claim = claims_of(CHAPTER)

register(
    _claim(
        "S5.collapse",
        "Layers that start at 0.1, 1 and 10 times their initial norm end up turning by sqrt(2 eta lambda) per step.",
        MOTION,
        f"angle per step / sqrt(2 eta lambda), {LAST}, eta 0.2, lambda 0.01, {EACH}",
        Between(0.97, 1.03),
        1.2,
        full=Between(0.97, 1.15),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S5.norm",
        "Their norms end at (eta E|g~|^2 / (2 lambda))^(1/4), g~ the gradient at unit norm.",
        MOTION,
        f"norm / prediction, {LAST}, eta 0.2, lambda 0.01, {EACH}",
        Between(0.97, 1.03),
        1.05,
        full=Between(0.9, 1.03),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S5.angle",
        "Every layer turns by sqrt(2 eta lambda / (1 + momentum)) per step, whatever its size and its gradients.",
        MOTION,
        f"angle per step / prediction, {LAST}, SGD at three other settings and two with momentum 0.9, {EACH}",
        Between(0.9, 1.1),
        0.7,
        full=Between(0.9, 1.2),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S5.norms",
        "Norms settle where the prediction says, with momentum and without.",
        MOTION,
        f"norm / prediction, {LAST}, SGD at three other settings and two with momentum 0.9, {EACH}",
        Between(0.85, 1.15),
        0.75,
        full=Between(0.8, 1.15),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S5.layers",
        "All layers of a network turn equally fast.",
        MOTION,
        "largest / smallest angle per step among the layers, every SGD setting, each of 3 seeds",
        Below(1.05),
        1.4,
        full=Below(1.15),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S5.adamw",
        "AdamW turns by sqrt(2 eta lambda (1 - beta1) / (1 + beta1)) per step, approximately.",
        ROTATION,
        f"angle per step / prediction, {LAST}, four pairs of eta and lambda, {EACH}",
        Between(0.75, 1.25),
        2.0,
    ),
    _claim(
        "S5.no_decay",
        "Without weight decay there is no equilibrium: the angle keeps falling.",
        f"Control; {MOTION}",
        f"angle per step in the last tenth / in the equilibrium before, decay switched off, every SGD setting, {EACH}",
        Below(0.65),
        1.0,
    ),
    _claim(
        "S5.never_decayed",
        "Without decay from the first step on the angle falls all along, from torch's initial scale.",
        f"Control; {MOTION}",
        f"angle per step in the last quarter / in the first quarter of the steps, eta 0.2, lambda 0, {EACH}",
        Below(0.65),
        0.9,
        full=Above(1.0),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S5.never_decayed_long",
        "Without decay from the first step on the angle falls as much from He's initial scale, which is longer.",
        f"Control; {MOTION}",
        "the same ratio from a start 2.4 times as long, of the layer where it is largest, each of 3 seeds",
        Above(0.65),
        0.2,
        NEGATIVE,
        full=Above(0.3),
    ),
    _claim(
        "S5.plain_spread",
        "Without normalization layers turn at speeds that differ by a factor of 1.4 or more.",
        f"Control; {MOTION}",
        "largest / smallest angle per step among the layers, no norm, eta 0.05, lambda 0.005, each of 3 seeds",
        Above(1.4),
        1.0,
        full=Between(1.05, 1.4),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S5.plain_angle",
        "Without normalization no layer turns by sqrt(2 eta lambda), nor within 25 % of it.",
        f"Control; {MOTION}",
        "smallest |angle per step / sqrt(2 eta lambda) - 1| of the layers, no norm, eta 0.05, lambda 0.005, 3 seeds",
        Above(0.25),
        0.1,
    ),
    _claim(
        "S5.plain_strong_decay",
        "Without normalization layers turn at speeds that differ by 1.4 or more where rate and decay are large, too.",
        f"Control; {MOTION}",
        "largest / smallest angle per step among the layers, no norm, eta 0.2, lambda 0.01, each of 3 seeds",
        Between(1.05, 1.4),
        1.0,
        NEGATIVE,
        full=Above(1.4),
        expected_full=HOLDS,
    ),
    _claim(
        "S6.cycles",
        "With weight decay, full-batch gradient descent on a normalized network does not converge: it learns, "
        "its weights shrink, it is thrown out, and learns again.",
        f"{PERIODIC}; Li and Arora, ICLR 2020, arXiv 1910.07454",
        "rises of the loss above 0.5 after it was below 0.05, 6000 steps, eta 0.3, lambda 0.01, each of 3 seeds",
        Above(4),
        0,
    ),
    _claim(
        "S6.no_decay",
        "Without weight decay the same descent stays where it has learned.",
        f"Control; {PERIODIC}",
        "rises of the loss above 0.5 after it was below 0.05, 6000 steps, eta 0.3, no decay, each of 3 seeds",
        Equal(0),
        1,
    ),
    _claim(
        "S7.gradient",
        "Weights 30 times as large have the same loss and a gradient that is 30 times smaller.",
        DOMINATION,
        "|ratio of the gradient norms / 30 - 1|, each layer, each of 3 seeds",
        Below(1e-6),
        1e-2,
    ),
    _claim(
        "S7.stuck",
        "There training stands still, as if in a minimum.",
        DOMINATION,
        "fall of the loss in 150 steps, weights times 30, relative to that of the unscaled weights, each of 3 seeds",
        Below(0.02),
        0.5,
    ),
    _claim(
        "S7.rescued",
        "It is no minimum: dividing the stuck weights by 30 lets the same network learn.",
        DOMINATION,
        "fall of the loss in 150 steps after the rescaling, relative to that of the unscaled weights, each of 3 seeds",
        Above(0.8),
        0.02,
    ),
)
