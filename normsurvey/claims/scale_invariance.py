"""What the chapter "Scale invariance" asserts: exact consequences of a loss that does not see the size of a weight."""

from . import Above, Below, Claim, register

CHAPTER = "2_theory/scale_invariance"
EULER = "van Laarhoven, arXiv 1706.05350; Arora, Li and Lyu, ICLR 2019, arXiv 1812.03981"
LAWS = "each of 3 norms x 3 seeds"
EXPONENTIAL = "Li and Arora, An exponential learning rate schedule for deep learning, ICLR 2020, arXiv 1910.07454"


def _exact(name: str, statement: str, source: str, measures: str, limit: float = 1e-10) -> Claim:
    return Claim(
        id=name,
        statement=statement,
        source=source,
        measures=measures,
        quick=Below(limit),
        full=Below(limit),
        chapter=CHAPTER,
        falsifier=1e4 * limit,
    )


def _control(name: str, statement: str, source: str, measures: str, limit: float) -> Claim:
    return Claim(
        id=name,
        statement=statement,
        source=source,
        measures=measures,
        quick=Above(limit),
        full=Above(limit),
        chapter=CHAPTER,
        falsifier=limit / 10,
    )


register(
    _exact(
        "S1.orthogonality",
        "The gradient of a scale-invariant weight is orthogonal to the weight.",
        EULER,
        f"|<w, g>| / (|w| |g|), worst row (BN) or tensor (LN, GN), {LAWS}",
    ),
    _exact(
        "S1.gradient",
        "Multiplying the weight by c divides its gradient by c.",
        EULER,
        f"|c g(cw) - g(w)| / |g(w)|, worst c of 0.01 to 1000, {LAWS}",
    ),
    _exact(
        "S1.hessian",
        "Multiplying the weight by c divides its Hessian by c^2.",
        EULER,
        f"|c^2 H(cw) v - H(w) v| / |H(w) v|, worst c of 0.01 to 1000, {LAWS}",
    ),
    _exact(
        "S1.euler",
        "The weight is no flat direction of its Hessian: H w = -g.",
        f"Euler's theorem for the gradient, homogeneous of degree -1; {EULER}",
        f"|H w + g| / |g|, {LAWS}",
    ),
    _control(
        "S1.eps",
        "A default eps of 1e-5 breaks the invariance of small weights.",
        "Definition of the layers: the variance shrinks with c^2, eps does not",
        "|c g(cw) - g(w)| / |g(w)| at c = 0.01 and eps = 1e-5, BN, each of 3 seeds",
        1e-2,
    ),
    _control(
        "S1.plain",
        "A network without a norm breaks each of the four laws.",
        "Definition of the network: its loss does see the size of a weight",
        "the same four errors without a norm, smallest over the matrices and over c, each of 3 seeds",
        1e-2,
    ),
    _exact(
        "S2.pythagoras",
        "A step of SGD without decay adds its own squared length to that of the weight.",
        EULER,
        "| |w+|^2 - |w|^2 - |step|^2 | / |step|^2, worst of 100 steps, each of 3 seeds",
        1e-12,
    ),
    _control(
        "S2.momentum_and_adam",
        "With momentum or Adam steps are not orthogonal to the weight, and the law fails.",
        "Heo et al., AdamP, ICLR 2021, arXiv 2006.08217",
        "| |w+|^2 - |w|^2 - |step|^2 | / |step|^2, worst of 100 steps, each of 3 seeds",
        1e-2,
    ),
    _exact(
        "S3.equivalence",
        "SGD with weight decay at a constant learning rate, and SGD without decay at an exponentially growing one, "
        "train the same function.",
        EXPONENTIAL,
        "largest loss difference over 300 steps, BN, LN and GN, momentum 0 and 0.9, each of 3 seeds",
        1e-9,
    ),
    _control(
        "S3.wrong_start",
        "With momentum the equivalence needs a first momentum along the weights; starting from zero breaks it.",
        f"Algebra of the two recursions, in this chapter; {EXPONENTIAL}",
        "largest loss difference over 300 steps from zero momentum, BN, LN and GN, each of 3 seeds",
        1e-2,
    ),
)
