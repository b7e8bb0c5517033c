"""What the chapter "The auto-tuned learning rate" asserts: rate, decay and norm are one number, which sets itself."""

from . import Above, Below, Between, Equal, register
from .record import NEGATIVE, claims_of

CHAPTER = "2_theory/auto_tuning"
DECAY = (
    "van Laarhoven, arXiv 1706.05350; Hoffer et al., NeurIPS 2018, arXiv 1803.01814; "
    "Zhang et al., ICLR 2019, arXiv 1810.12281"
)
TUNING = "Arora, Li and Lyu, ICLR 2019, arXiv 1812.03981"
ADAMP = "Heo et al., AdamP, ICLR 2021, arXiv 2006.08217"
GROWTH = "with momentum 0.9 over that of SGD, batches of 64, each of 3 seeds"
_claim = claims_of(CHAPTER)

register(
    _claim(
        "S4.equivalence",
        "Weights c times as large, a learning rate c^2 times as large and a decay c^2 times as small train the same "
        "function.",
        DECAY,
        "largest loss difference over 200 steps with momentum 0.9, worst c of 0.1, 10, 100, BN, LN and GN, "
        "each of 3 seeds",
        Below(1e-10),
        1e-6,
    ),
    _claim(
        "S4.decay_left",
        "The decay has to be changed too: left as it was, it trains another function.",
        f"Control of the equivalence; {DECAY}",
        "largest loss difference over 200 steps at c = 10 with lambda unchanged, BN, LN and GN, each of 3 seeds",
        Above(1e-2),
        1e-3,
    ),
    _claim(
        "S4.isolines",
        "In equilibrium learning rate and weight decay act through their product.",
        DECAY,
        "Spearman correlation of the late training loss with eta lambda over a 5 x 5 grid, each of 3 seeds",
        Above(0.9),
        0.1,
        full=Between(0.3, 0.9),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S4.isolines_rate",
        "The product orders the late losses better than the learning rate does.",
        DECAY,
        "Spearman correlation with eta lambda minus that with eta, late training loss, each of 3 seeds",
        Above(0.1),
        0.0,
    ),
    _claim(
        "S4.before_equilibrium",
        "Before equilibrium is reached the learning rate orders the losses better than the product does.",
        "Control of the isolines, in this chapter: decay acts over 1 / (eta lambda) steps",
        "|Spearman| with eta minus |Spearman| with eta lambda, loss of steps 10 to 40, each of 3 seeds",
        Above(0.1),
        0.05,
        full=Below(0.0),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S8.finite",
        "Gradient descent on scale-invariant weights never diverges, whatever its learning rate.",
        TUNING,
        "number of losses that are not finite, initial rates over 8 decades, each of 3 seeds",
        Equal(0),
        1.0,
    ),
    _claim(
        "S8.any_rate",
        "The learning rate need not be tuned: gradient descent finds one by itself.",
        TUNING,
        "decades of neighbouring initial rates whose final loss is within 5 % of the best, each of 3 seeds",
        Above(4.0),
        2.0,
    ),
    _claim(
        "S8.plain",
        "The same model without the normalization has to have its learning rate tuned.",
        f"Control of the previous claim; {TUNING}",
        "decades of neighbouring initial rates whose final loss is within 5 % of the best, no normalization, "
        "each of 3 seeds",
        Between(0.0, 2.0),
        4.0,
    ),
    _claim(
        "S8.one_step",
        "One step suffices to bring the effective rate down to 1 / (2 G), for any initial rate, "
        "with G the gradient on the unit sphere.",
        f"Pythagoras and the inequality of means, in this chapter; {TUNING}",
        "2 G eta / |w_1|^2, worst of the initial rates over 8 decades, each of 3 seeds",
        Below(1 + 1e-9),
        1.1,
    ),
    _claim(
        "S8.convergence",
        "The smallest gradient on the sphere met so far falls at least as fast as 1 / sqrt(T).",
        TUNING,
        "smallest G before step T over C / sqrt(T) with C = |w_1|^2 / eta + 2 L(w_1), known after one step, "
        "worst T and rate, each of 3 seeds",
        Below(1.0),
        2.0,
    ),
    _claim(
        "S8.paid",
        "After the first step the inverse effective rate grows by no more than twice what the loss falls.",
        f"A descent lemma on the sphere, in this chapter; {TUNING}",
        "growth of |w|^2 / eta over 2 (L(w_1) - L(w_T)), worst of the initial rates over 8 decades, each of 3 seeds",
        Below(1.0),
        2.0,
    ),
    _claim(
        "S8.stochastic",
        "With mini-batches the smallest gradient on the sphere falls at least as fast as the fourth root of 1 / T.",
        TUNING,
        "smallest G of the whole data before step T over C T^(-1/4), C from the first quarter of the run, worst later "
        "T and initial rate of 0.1 to 1000, batches of 50, each of 3 seeds",
        Below(1.0),
        1.41,
    ),
    _claim(
        "S8.noisy_rate",
        "With mini-batches the effective rate does not settle: its inverse, squared, grows in proportion to T.",
        f"The recursion with a gradient that has a floor, in this chapter; {TUNING}",
        "exponent in T of the growth of (|w|^2 / eta)^2 since the first step, last three quarters of the run, initial "
        "rates 1 and 10, batches of 50, each of 3 seeds",
        Between(0.8, 1.2),
        0.05,
    ),
    _claim(
        "S9.law",
        "With momentum the squared norm grows by the squared step and by what is remembered of the steps before.",
        ADAMP,
        "relative error of the growth of |w|^2 over a run, SGD with momentum 0.9 at two rates, each of 3 seeds",
        Below(1e-10),
        1e-6,
    ),
    _claim(
        "S9.same_rate",
        "At the same learning rate, momentum lets the norm of scale-invariant weights grow much more.",
        ADAMP,
        f"growth of the norm {GROWTH}, same rate",
        Above(1.5),
        1.0,
        full=Between(1.1, 1.5),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S9.matched_rate",
        "Momentum slows the effective steps down more than SGD does at a learning rate that travels as far.",
        ADAMP,
        f"growth of the norm {GROWTH}, rate 0.1 times that of SGD",
        Between(0.9, 1.1),
        1.5,
        NEGATIVE,
    ),
    _claim(
        "S9.excess",
        "At matched rates the excess growth of momentum lies between 1, for pure noise, and (1 + m) / (1 - m), "
        "for gradients that persist.",
        f"The law of S9.law in its two limits, in this chapter; {ADAMP}",
        "growth of |w|^2 with momentum 0.9 over that of SGD, rate 0.1 times that of SGD, batches of 64 and "
        "full batch, each of 3 seeds",
        Between(1.0, 19.0),
        25.0,
        full=Between(0.2, 19.0),
        expected_full=NEGATIVE,
    ),
    _claim(
        "S9.projection",
        "With the radial part of the steps taken out, Pythagoras holds for momentum as it does for SGD.",
        ADAMP,
        "| |w+|^2 - |w|^2 - |step|^2 | / |w+|^2, worst step, projected momentum at two rates, each of 3 seeds",
        Below(1e-12),
        1e-8,
    ),
    _claim(
        "S9.adam",
        "Adam's weights grow more than those of Adam with projected steps.",
        ADAMP,
        "growth of the norm with Adam over that with projected Adam, lr 0.01, 300 steps, each of 3 seeds",
        Above(1.1),
        1.0,
    ),
)
