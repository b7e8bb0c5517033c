"""What the chapter "Representation" asserts: what a norm takes from features, and what is left to learn with."""

from . import Above, Below, Between, Claim, Equal, register

CHAPTER = "2_theory/representation"
GROUP_WHITENING = "Huang et al., Group Whitening, CVPR 2021, arXiv 2009.13333"
AFFINE_ONLY = "Frankle, Schwab and Morcos, Training BatchNorm and Only BatchNorm, ICLR 2021, arXiv 2003.00152"
WADIA = "Wadia et al., Whitening and second order optimization, ICML 2021, arXiv 2008.07545"
ITERATIVE = "Huang et al., Iterative Normalization, CVPR 2019, arXiv 1904.03441"
NEGATIVE = "does not hold at this scale"


def _both(criterion: Between, falsifier: float, expected: str = "holds") -> dict:
    return {
        "quick": criterion, "full": criterion, "falsifier": falsifier, "chapter": CHAPTER, "expected": expected,
    }  # fmt: skip


register(
    Claim(
        id="R1.constraints",
        statement="A norm takes as many degrees of freedom from its output as its constraint number says.",
        source=GROUP_WHITENING,
        measures="rank deficit of the Jacobian minus the formula, seven norms, each of 3 seeds",
        **_both(Equal(0), 1),
    ),
    Claim(
        id="R1.gap",
        statement="The rank is no matter of taste: zero and non-zero singular values are far apart.",
        source="the Jacobians of R1.constraints in float64",
        measures="largest singular value taken as 0 over the smallest other one, seven norms, worst of 3 seeds each",
        **_both(Below(1e-9), 1e-3),
    ),
    Claim(
        id="R1.whitenings",
        statement="All exact whitenings of d centred features take d(d+3)/2, whichever of the matrices they choose.",
        source=GROUP_WHITENING,
        measures="rank deficit minus areas x d(d+3)/2, each layer and kind that centres and whitens, 3 seeds",
        **_both(Equal(0), 1),
    ),
    Claim(
        id="R1.whitening_gap",
        statement="Nor is it for whitenings: Newton's steps have converged, and no soft constraint is counted as hard.",
        source="the Jacobians of R1.whitenings in float64",
        measures="largest singular value taken as 0 over the smallest other one, each whitening, worst of 3 seeds",
        **_both(Below(1e-9), 1e-8),
    ),
    Claim(
        id="R1.mean_kept",
        statement="A whitening that leaves the mean in takes d less: the d(d+1)/2 of its covariance.",
        source="the argument of the chapter, on Shao et al., Channel Equilibrium, ICML 2020, arXiv 2003.00214",
        measures="rank deficit minus areas x d(d+1)/2, the whitening branch of ChannelEquilibrium, each of 3 seeds",
        **_both(Equal(0), 3),
    ),
    Claim(
        id="R1.catalogue",
        statement="The number of areas times the constraints of the operation predicts what any plain layer takes.",
        source="the argument of the chapter",
        measures="rank deficit minus areas x constraints per area, each plain layer in the catalogue, 3 seeds",
        **_both(Equal(0), 1),
    ),
    Claim(
        id="R1.newton",
        statement="A whitening cut off after a few Newton steps takes d + 1: means and one common scale, nothing more.",
        source=f"the argument of the chapter, on the method of {ITERATIVE}",
        measures="rank deficit minus (d + 1), d = 5, after 1, 2, 3 and 4 steps, each of 3 seeds",
        **_both(Equal(0), 14),
    ),
    Claim(
        id="R1.inference",
        statement="In inference, with statistics that do not depend on the input, a norm takes nothing.",
        source="the argument of the chapter: a fixed affine map is invertible",
        measures="rank deficit in eval mode, batch normalization and three whitenings, each of 3 seeds",
        **_both(Equal(0), 12),
    ),
    Claim(
        id="R1.eps",
        statement="With eps > 0 the constraints of scale are soft: batch normalization then takes d, not 2d.",
        source="the argument of the chapter",
        measures="rank deficit minus d at eps = 1e-5, batch normalization, each of 3 seeds",
        **_both(Equal(0), 6),
    ),
    Claim(
        id="R1.wall_white",
        statement="Where whitening leaves no degree of freedom by the count, no output is white.",
        source=GROUP_WHITENING,
        measures="share of its variance that the output has, g(g+3)/2 >= C, each g, worst of 3 seeds",
        **_both(Below(0.99), 1.0),
    ),
    Claim(
        id="R1.wall_loss",
        statement="Beyond that wall a group-whitened network learns less in the same number of steps.",
        source=GROUP_WHITENING,
        measures="smallest training loss beyond the wall over the largest before it, each of 3 seeds",
        **_both(Above(1.2), 0.9),
    ),
    Claim(
        id="R1.wall_information",
        statement="Beyond the wall a representation is lost that no gain could restore.",
        source=f"a reading of {GROUP_WHITENING} that the control of the chapter refutes",
        measures="largest loss beyond the wall, output size restored, over the largest before it, each of 3 seeds",
        **_both(Below(1.5), 3.0, NEGATIVE) | {"full": Below(2.0)},
    ),
    Claim(
        id="R1.batch_wall",
        statement="Batch whitening of d features fails where m samples, centred, have a rank m - 1 below d.",
        source=f"the argument of the chapter; the count of {GROUP_WHITENING} allows whitening from m > (d+3)/2 on",
        measures="share of its variance that the output has, d = 12, each m <= d, largest of 3 seeds",
        **_both(Below(0.99), 1.0),
    ),
    Claim(
        id="R1.batch_white",
        statement="From m = d + 1 samples on it succeeds.",
        source="the argument of the chapter",
        measures="share of its variance that the output has, d = 12, each m > d, smallest of 3 seeds",
        **_both(Above(0.999), 11 / 12),
    ),
    Claim(
        id="R1.simplex",
        statement="d + 1 samples whitened in d features are a regular simplex: all their distances are equal.",
        source=f"{WADIA}; the argument of the chapter",
        measures="standard deviation of the distances over their mean, digits, each of 3 seeds",
        **_both(Below(1e-8), 1e-2),
    ),
    Claim(
        id="R1.neighbours",
        statement="Towards that wall, whitening makes a batch forget which of its samples are alike.",
        source=WADIA,
        measures="share of nearest neighbours with the same label lost by whitening at d = m - 2, each of 3 seeds",
        **_both(Above(0.4), 0.1),
    ),
    Claim(
        id="R2.affine_over_random",
        statement="Training gain and bias alone beats training as many random weights.",
        source=AFFINE_ONLY,
        measures="difference of test accuracies, residual network, each of 3 seeds",
        **_both(Above(0.25), 0.0),
    ),
    Claim(
        id="R2.affine",
        statement="Gain and bias of batch normalization alone, all weights random and the head frozen, learn a task.",
        source=AFFINE_ONLY,
        measures="test accuracy, residual network, ten classes, each of 3 seeds",
        **_both(Above(0.5), 0.1),
    ),
    Claim(
        id="R2.disabled",
        statement="Training gains alone switches a third of the random features off.",
        source=f"{AFFINE_ONLY}, for deep networks on CIFAR-10",
        measures="share of gains below 0.01, each of 3 seeds",
        **_both(Below(0.2), 0.33, NEGATIVE),
    ),
    Claim(
        id="R3.zca",
        statement="Exact whitening decorrelates the channels of every layer, compared with batch normalization.",
        source=GROUP_WHITENING,
        measures="mean |correlation| of BN over that of ZCA, smallest over layers, trained, each of 3 seeds",
        **_both(Above(2.0), 1.0),
    ),
    Claim(
        id="R3.iternorm",
        statement="Five Newton steps at least halve the correlation of channels in every layer.",
        source=ITERATIVE,
        measures="mean |correlation| of BN over that of IterNorm, smallest over layers, trained, each of 3 seeds",
        quick=Above(2.0), full=Above(1.5), chapter=CHAPTER, falsifier=1.0, expected_full=NEGATIVE,
    ),
    Claim(
        id="R3.group_whitening",
        statement="Group whitening decorrelates channels over the batch.",
        source=f"a reading of {GROUP_WHITENING}, which whitens within a sample",
        measures="mean |correlation| over layers, BN over group whitening, after training, each of 3 seeds",
        **_both(Between(0.5, 1.5), 2.0, NEGATIVE),
    ),
    Claim(
        id="R3.own_axis",
        statement="Group whitening decorrelates the groups of channels within a sample.",
        source=GROUP_WHITENING,
        measures="mean |correlation| of groups within samples, BN over group whitening, smallest layer, 3 seeds",
        **_both(Above(2.0), 1.0),
    ),
)
