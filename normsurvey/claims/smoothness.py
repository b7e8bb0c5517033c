"""What the chapter "Smoothness, learning rates, and what batch normalization does not do" asserts."""

from . import Above, Below, register
from .record import NEGATIVE, claims_of

CHAPTER = "2_theory/smoothness"
SANTURKAR = "Santurkar et al., How does batch normalization help optimization?, NeurIPS 2018, arXiv 1805.11604"
BJORCK = "Bjorck et al., Understanding batch normalization, NeurIPS 2018, arXiv 1806.02375"
ARMS = "without over with BN"

_claim = claims_of(CHAPTER)

register(
    _claim(
        "O1.identity",
        "Batch normalization takes two projections out of a gradient, multiplies it by gamma over sigma, no more.",
        f"{SANTURKAR}, of which theorem 4.1 is the consequence",
        "violation of the identity, relative to the largest gradient, each layer, each of 3 seeds",
        Below(1e-10),
        1e-6,
    ),
    _claim(
        "O1.projections",
        "Without the two projections the identity fails: they are no formality.",
        f"{SANTURKAR}, theorem 4.1",
        "violation without the projections, relative to the largest gradient, worst layer, each of 3 seeds",
        Above(1e-3),
        1e-4,
    ),
    _claim(
        "O1.loss_range_05",
        "At learning rate 0.05 the loss along the gradient varies less with batch normalization.",
        f"{SANTURKAR}, figure 4",
        f"range of the loss at 0.5 to 4 times the rate, median of the first 100 steps, {ARMS}, median of 3 seeds",
        Above(1.5),
        1.0,
    ),
    _claim(
        "O1.loss_range_10",
        "At learning rate 0.1 the loss along the gradient varies much less with batch normalization.",
        f"{SANTURKAR}, figure 4",
        f"range of the loss at 0.5 to 4 times the rate, median of the first 100 steps, {ARMS}, median of 3 seeds",
        Above(2.5),
        1.0,
    ),
    _claim(
        "O1.gradient_change",
        "With batch normalization the gradient predicts better what it will be a step further.",
        f"{SANTURKAR}, figure 4",
        f"largest change of the gradient, median of the first 100 steps, {ARMS}, rates 0.05 and 0.1, median of 3 seeds",
        Above(2.0),
        1.0,
    ),
    _claim(
        "O1.small_rate",
        "At learning rate 0.01 too the loss along the gradient varies less with batch normalization.",
        f"{SANTURKAR}, figure 4, read as a statement on every learning rate",
        f"range of the loss at 0.5 to 4 times the rate, median of the first 100 steps, {ARMS}, each of 3 seeds",
        Below(1.0),
        1.5,
        NEGATIVE,
    ),
    _claim(
        "O1.covariate_shift",
        "Where both networks train calmly, batch normalization does not reduce the internal covariate shift.",
        f"{SANTURKAR}, definition 2.1 and figure 2",
        "|cosine of the shift with BN - without|, mean of layers and the first 100 steps at rate 0.01, each of 3 seeds",
        Below(0.1),
        0.2,
    ),
    _claim(
        "O1.covariate_shift_large_rate",
        "Nor does batch normalization reduce the internal covariate shift at a larger learning rate.",
        f"{SANTURKAR}, definition 2.1 and figure 2, read as a statement on every learning rate",
        "cosine of the shift with BN - without, mean of layers and 100 first steps, rates 0.05, 0.1, each of 3 seeds",
        Above(0.1),
        0.0,
        NEGATIVE,
    ),
    _claim(
        "O1.covariate_shift_settled",
        "Later in the same runs, once the plain network no longer bounces, batch normalization makes no difference.",
        f"Control of the claim before it, in this chapter; the definition is that of {SANTURKAR}",
        "|cosine of the shift with BN - without|, mean of layers and steps 300 to 450 at rate 0.05, each of 3 seeds",
        Below(0.1),
        0.4,
    ),
    _claim(
        "O1.noise",
        "Noise behind every batch normalization makes the internal covariate shift large.",
        f"{SANTURKAR}, section 2.1",
        "cosine of the shift with noisy BN, mean of layers and steps at rate 0.1, each of 3 seeds",
        Below(0.4),
        0.8,
    ),
    _claim(
        "O1.noise_trains",
        "The network with the large covariate shift trains as well as the other.",
        f"{SANTURKAR}, section 2.1",
        "test accuracy with BN - with noisy BN, after the same steps at rate 0.1, each of 3 seeds",
        Below(0.03),
        0.1,
    ),
    _claim(
        "O1.noise_frozen",
        "What makes the noisy shift large is that the noise changes: the same noise before and after leaves it small.",
        "Control of the measurement, in this chapter",
        "cosine with frozen noise - with new noise, noisy BN, each of 3 seeds",
        Above(0.2),
        0.0,
    ),
    _claim(
        "O8.largest_rate",
        "Batch normalization allows learning rates an order of magnitude larger.",
        BJORCK,
        "largest rate that reaches a test accuracy above 0.9, with over without BN, each of 3 seeds",
        Above(10.0),
        3.0,
    ),
    _claim(
        "O8.best_accuracy",
        "Each at its own best learning rate, the batch-normalized network is more accurate by several points.",
        f"Common reading of {BJORCK}, who train larger networks",
        "|best with BN - best without| over rates, test accuracy, mean of the last 50 steps, each of 3 seeds",
        Below(0.03),
        0.1,
        NEGATIVE,
    ),
    _claim(
        "O8.small_rate",
        "At one and the same small learning rate too, batch normalization trains faster.",
        f"Common reading of {BJORCK}, which compares at larger rates",
        "test accuracy with BN - without at rate 0.001 after the same steps, each of 3 seeds",
        Below(0.0),
        0.1,
        NEGATIVE,
    ),
    _claim(
        "O8.explosion",
        "Steps that are too large make a plain network explode with depth, before the loss is lost.",
        BJORCK,
        "rms of outputs, last over first hidden layer, at the last step with finite loss, rate 3, each of 3 seeds",
        Above(1e3),
        5.0,
        full=Above(300),
        expected_full=NEGATIVE,
    ),
    _claim(
        "O8.no_explosion",
        "The same steps leave a batch-normalized network of one scale in all layers.",
        BJORCK,
        "rms of outputs before the norms, last over first hidden layer, worst of 10 steps, rate 3, each of 3 seeds",
        Below(5.0),
        1e3,
    ),
    _claim(
        "O8.heavy_tails",
        "Gradients of a plain network have heavy tails at initialisation; with batch normalization they have not.",
        BJORCK,
        f"kurtosis of the middle layer's gradient at initialisation, {ARMS}, each of 3 seeds",
        Above(4.0),
        1.0,
    ),
)
