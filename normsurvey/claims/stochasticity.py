"""What the chapter "Stochasticity" asserts: the noise of batch statistics, as a regularizer and as uncertainty."""

from . import Above, Below, Between, register
from .record import HOLDS, NEGATIVE, claims_of

WHITENING = "Huang et al., An Investigation into the Stochasticity of Batch Whitening, CVPR 2020, arXiv 2003.12327"
SHIFT = "Huang et al., Delving into the Estimation Shift of Batch Normalization, CVPR 2022, arXiv 2203.10778"
GHOSTS = "Hoffer, Hubara and Soudry, Train longer, generalize better, NeurIPS 2017, arXiv 1705.08741"
TEYE = "Teye, Azizpour and Smith, ICML 2018, arXiv 1802.06455"
PRECISE = "Wu and Johnson, Rethinking 'Batch' in BatchNorm, 2021, arXiv 2105.07576"
CLOUD = "16 Gaussian features, batches of 32, 64 and 256, each of 3 seeds"
SWEEP = "512 digits, SGD batch 128"
_maker = claims_of("2_theory/stochasticity")


def _claim(name, criterion, falsifier, *, statement, source, measures, **outcome):
    register(_maker(name, statement, source, measures, criterion, falsifier, **outcome))


# --- G1: the noise of a layer ---------------------------------------------------------------------------

_claim(
    "G1.order", Above(1.0), 0.9,
    statement="Batch normalization disturbs a sample least, then whitening in groups, ZCA, Cholesky, and PCA most.",
    source=WHITENING,
    measures=f"smallest ratio of the disturbances of two neighbours in this order, {CLOUD}",
)  # fmt: skip
_claim(
    "G1.zca_disturbance", Above(1.5), 1.0,
    statement="ZCA whitening disturbs a sample clearly more than standardizing does.",
    source=WHITENING,
    measures=f"disturbance of ZCA over that of batch normalization, {CLOUD}",
)  # fmt: skip
_claim(
    "G1.iternorm", Below(1.0), 1.2,
    statement="Five Newton iterations disturb less than the whitening that they approximate.",
    source="Huang et al., Iterative Normalization, CVPR 2019, arXiv 1904.03441; " + WHITENING,
    measures=f"disturbance of IterNorm over that of ZCA, {CLOUD}",
)  # fmt: skip
_claim(
    "G1.first_order", Between(0.85, 1.15), 1.5,
    statement="The noise of the mean and of the covariance, to first order, gives the disturbance of every operation "
    "that has no axes to swap.",
    source="perturbation of the whitening matrix around the identity, derived in the chapter",
    measures="measured over predicted disturbance, batch normalization, ZCA in groups of 4, ZCA and Cholesky, batches "
    "of 64 and 256, each of 3 seeds",
)  # fmt: skip
_claim(
    "G1.slope_batchnorm", Between(-0.6, -0.4), 0.0,
    statement="The disturbance of batch normalization falls with the square root of the batch size.",
    source="variance of a mean and of a variance; " + WHITENING,
    measures="slope of log disturbance in log batch size, 32 to 256, each of 3 seeds",
)  # fmt: skip
_claim(
    "G1.slope_pca", Above(-0.2), -0.5,
    statement="Where directions are alike, larger batches do not calm PCA whitening.",
    source=WHITENING,
    measures="slope of log disturbance in log batch size, 32 to 256, isotropic cloud, each of 3 seeds",
)  # fmt: skip
_claim(
    "G1.slope_pca_apart", Below(-0.4), 0.0,
    statement="Without eigenvalues that can change places there is nothing to swap: PCA then calms down too.",
    source="control of G1.slope_pca: perturbation of eigenvectors goes with the inverse gap",
    measures="the same slope, variances that differ by a factor of 2 from axis to axis, each of 3 seeds",
)  # fmt: skip
_claim(
    "G1.batch_free", Below(1e-12), 1e-3,
    statement="A norm that does not look at the batch does not disturb, nor does batch normalization in inference.",
    source="control: definition of layer and group normalization",
    measures="disturbance of LayerNorm, GroupNorm, and BatchNorm in inference, batches of 32, each of 3 seeds",
)  # fmt: skip

# --- G2: noise as a regularizer -------------------------------------------------------------------------

_claim(
    "G2.sign", Below(1e-12), 1e-3,
    statement="With two samples and one position batch normalization puts out +1 and -1, whatever comes in.",
    source="definition of the layer, eps = 0",
    measures="largest | |y| - 1 | of 200 channels, each of 3 seeds",
)  # fmt: skip
_claim(
    "G2.sign_needs_one_position", Above(0.1), 1e-6,
    statement="A second position lets values through again.",
    source="control of G2.sign",
    measures="largest | |y| - 1 | of 200 channels, two samples with two positions, each of 3 seeds",
)  # fmt: skip
_claim(
    "G2.gap", Between(0.9, 1.5), 2.0,
    statement="Smaller normalization batches, and so more noise, narrow the gap between training and test.",
    source=GHOSTS + ", on large batches of images",
    measures="largest ratio of the gaps in cross entropy to that with normalization batch 128, SGD batch 128, 3 seeds: "
    "batch 16 on 512 digits, or at the full scale batch 4 on digits on photographs; would have to be below 0.9",
    expected=NEGATIVE,
)  # fmt: skip
_claim(
    "G2.accuracy", Below(0.01), 0.05,
    statement="Smaller normalization batches raise test accuracy.",
    source=GHOSTS + ", on large batches of images",
    measures="smallest gain in test accuracy over normalization batch 128, batches of 16 and 32, "
    f"{SWEEP}, 3 seeds; would have to be at least 0.01",
    expected=NEGATIVE,
)  # fmt: skip
_claim(
    "G2.too_much", Below(-0.05), 0.0,
    statement="Too much of the noise ruins the network: with two samples only signs are left.",
    source="consequence of G2.sign",
    measures=f"test accuracy with normalization batch 2 - with 128, {SWEEP}, each of 3 seeds",
)  # fmt: skip

# --- G3: noise as uncertainty ---------------------------------------------------------------------------

_claim(
    "G3.noisy", Below(0.9), 1.0,
    statement="Averaging predictions over training batches improves the likelihood of corrupted digits.",
    source=TEYE,
    measures="negative log-likelihood over that with statistics of all training images, digits with four draws of "
    "noise of one deviation, batches of 64, 64 draws, each of 3 seeds",
)  # fmt: skip
_claim(
    "G3.clean", Between(1.05, 1.5), 2.0,
    statement="It costs hardly any likelihood on clean digits.",
    source=TEYE,
    measures="largest of the same ratio on clean test digits, 3 seeds; would have to be below 1.05 with two hidden "
    "layers of 128, and is with the full scale's three of 256",
    expected=NEGATIVE, full=Below(1.05), expected_full=HOLDS,
)  # fmt: skip
_claim(
    "G3.full_batch", Below(1e-5), 0.1,
    statement="If the one batch is all training images, nothing is random and nothing is gained.",
    source="control of G3.noisy",
    measures="largest difference of probabilities to those with statistics of all training images, each of 3 seeds",
)  # fmt: skip
_claim(
    "G3.price", Above(1.05), 1.0,
    statement="In a network that was trained with batches of 16, the same average makes clean predictions too timid.",
    source="counter-example to G3.clean; declared after trying seeds 10 and 11",
    measures="negative log-likelihood on clean digits over that with all training images, each of 3 seeds",
)  # fmt: skip
_claim(
    "G3.ood", Below(0.02), 0.1,
    statement="Averaging over batches tells digits from shuffled pixels better.",
    source=TEYE + ", on uncertainty in general",
    measures="smallest gain of the area under the ROC curve of the predictive entropy, 3 seeds; would have to be at "
    "least 0.02",
    expected=NEGATIVE,
)  # fmt: skip
_claim(
    "G3.more_than_flat", Above(1.0), 0.8,
    statement="The average is better than dividing all logits by one number.",
    source="control of G3.noisy: a temperature that gives the same mean confidence; tried on seed 10 first",
    measures="largest ratio of negative log-likelihoods on noisy digits, average over batches / temperature, 3 seeds; "
    "would have to be below 1",
    expected=NEGATIVE,
)  # fmt: skip

# --- G4: estimation shift, what the chapter on estimating well leaves open --------------------------------

_claim(
    "G4.large_rate", Below(1.0), 1.2,
    statement="After training at a large learning rate precise statistics improve the likelihood.",
    source=PRECISE,
    measures="negative log-likelihood, precise over running averages, rate 1 with momentum 0.9, four norms, each of "
    "6 seeds",
)  # fmt: skip
_claim(
    "G4.calibration", Above(1.0), 0.8,
    statement="After training at a large learning rate precise statistics improve calibration.",
    source=PRECISE + ", on inference in general",
    measures="largest ratio of calibration errors, precise / running averages, as above, 6 seeds; would have to be "
    "below 1",
    expected=NEGATIVE,
)  # fmt: skip
_claim(
    "G4.shift_accumulates", Above(1.0), 0.8,
    statement="The estimation shift accumulates from layer to layer.",
    source=SHIFT,
    measures="shift of the last norm's deviations over that of the first's, four norms, running averages, each of "
    "6 seeds",
)  # fmt: skip
