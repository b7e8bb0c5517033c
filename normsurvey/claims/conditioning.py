"""What the chapter "Conditioning" asserts of Hessians at equal loss, and of the moments that layers see."""

from . import Above, Below, Claim, register
from .record import NEGATIVE

CHAPTER = "2_theory/conditioning"
GHORBANI = "Ghorbani, Krishnan and Xiao, ICML 2019, arXiv 1901.10159"
PYHESSIAN = "Yao, Gholami, Keutzer and Mahoney, PyHessian, arXiv 1912.07145"
LAYERWISE = "Huang et al., Layer-wise Conditioning Analysis, ECCV 2020, arXiv 2002.10801"
LEVELS = "at loss 0.5 and 0.1, each of 4 seeds"


def _above(name: str, statement: str, source: str, measures: str, limit: float, falsifier: float, **more) -> Claim:
    return Claim(
        id=name,
        statement=statement,
        source=source,
        measures=measures,
        quick=Above(limit),
        full=Above(limit),
        chapter=CHAPTER,
        falsifier=falsifier,
        **more,
    )


register(
    _above(
        "O2.outliers",
        "At equal training loss the Hessian's largest eigenvalue is far larger without batch normalization.",
        GHORBANI,
        f"lambda_1 without over with BN, {LEVELS}",
        4,
        1.0,
    ),
    _above(
        "O2.gap",
        "Without batch normalization the top eigenvalues stand apart from those that follow; with it they do not.",
        GHORBANI,
        f"lambda_1 / lambda_10 without over with BN, {LEVELS}",
        2,
        1.0,
    ),
    _above(
        "O2.gradient_energy",
        "Without batch normalization the gradient lies mostly in the top eigenspace; with it, it does not.",
        GHORBANI,
        f"gradient energy in the top 10 eigenvectors, without minus with BN, {LEVELS}",
        0.25,
        0.0,
    ),
    _above(
        "O2.initialisation",
        "Batch normalization flattens the loss everywhere, at torch's default initialisation and before any step too.",
        f"Common reading of {GHORBANI}; against it {PYHESSIAN}: not always smoother, least so in shallow networks",
        "lambda_1 with over without BN at initialisation, depths 2 and 4, each of 3 seeds",
        2,
        1.0,
        expected=NEGATIVE,
    ),
    _above(
        "O3.spread_without",
        "Without normalization the layers of a trained deep network see inputs of very different scale.",
        LAYERWISE,
        "max / min over layers of lambda_max(Sigma_x) without BN, after 200 steps, each of 3 seeds",
        5,
        1.0,
    ),
    Claim(
        id="O3.spread_with",
        statement="With batch normalization all layers see inputs of one scale.",
        source=LAYERWISE,
        measures="max / min over layers of lambda_max(Sigma_x) with BN, after 200 steps, each of 3 seeds",
        quick=Below(1.5),
        full=Below(1.5),
        chapter=CHAPTER,
        falsifier=5.0,
    ),
    _above(
        "O3.condition_number",
        "Batch normalization lowers the condition number of what a layer sees.",
        LAYERWISE,
        "median over layers of kappa_50%(Sigma_x), without over with BN, after 200 steps, each of 3 seeds",
        8,
        1.0,
    ),
    _above(
        "O3.gradient_spread",
        "Batch normalization also brings the output gradients of all layers to one scale.",
        f"The other half of the Kronecker factorisation in {LAYERWISE}",
        "max / min over layers of lambda_max(Sigma_grad) with BN, after 200 steps, each of 3 seeds",
        2,
        1.0,
        expected=NEGATIVE,
    ),
)
