"""What the chapter "Wide and deep: mean-field theory" asserts of random networks: rates and exponents."""

from . import Above, Below, Between, register
from .record import NEGATIVE, claims_of

CHAPTER = "2_theory/mean_field"
YANG = "Yang et al., A mean field theory of batch normalization, ICLR 2019, arXiv 1902.08129"
DANESHMAND = "Daneshmand et al., Batch normalization provably avoids rank collapse, NeurIPS 2020, arXiv 2003.01652"
DE_SMITH = "De and Smith, Batch normalization biases residual blocks to the identity, NeurIPS 2020, arXiv 2002.10444"
KARAKIDA = "Karakida, Akaho and Amari, NeurIPS 2019, arXiv 1906.02926"
FLAT = Between(-0.25, 0.25)
BOTH = "exponent in the width, as many samples as units, tanh with biases and ReLU, each of 3 seeds"
_claim = claims_of(CHAPTER)

register(
    _claim(
        "O5.relu",
        "With batch normalization before every ReLU the squared gradient grows by pi / (pi - 1) per layer, backwards.",
        YANG,
        "rate over pi / (pi - 1), batches of 128 and more, each of 3 seeds",
        Between(0.98, 1.02),
        1.04,
    ),
    _claim(
        "O5.linear",
        "Without an activation it grows by (B - 2) / (B - 3) for batches of B.",
        YANG,
        "rate over (B - 2) / (B - 3), B = 6, 8, 12 and 20, each of 3 seeds",
        Between(0.97, 1.03),
        0.9,
    ),
    _claim(
        "O5.no_norm",
        "The same network without normalization, He's weights, has gradients of one size at every depth.",
        f"He et al., ICCV 2015, arXiv 1502.01852; the contrast is that of {YANG}",
        "rate of the squared gradient per layer, each of 3 seeds",
        Between(0.97, 1.03),
        1.467,
    ),
    _claim(
        "O5.layer_norm",
        "Layer normalization in the same place does not make gradients explode.",
        f"The derivation of {YANG}, with variances over features; in this chapter",
        "rate of the squared gradient per layer, each of 3 seeds",
        Between(0.9, 1.1),
        1.467,
    ),
    _claim(
        "O5.weight_scale",
        "No scale of the weights helps against it: the gradients of a batch-normalized network do not depend on it.",
        f"Scale invariance; {YANG}",
        "relative change of the squared gradients of all layers, weights times 0.1 and 10, each of 3 seeds",
        Below(1e-12),
        1e-6,
    ),
    _claim(
        "O6.rank",
        "Hundreds of linear layers with batch normalization keep a rank of the order of the root of the width.",
        DANESHMAND,
        "participation ratio over root d after 500 layers, batch = width d = 32, 64, 128, with centring and without, "
        "each of 3 seeds",
        Above(0.6),
        0.2,
    ),
    _claim(
        "O6.exponent",
        "That rank grows with the width, as its root.",
        DANESHMAND,
        "exponent of the participation ratio in the width d = 32, 64, 128, with centring and without, each of 3 seeds",
        Between(0.4, 0.8),
        0.05,
    ),
    _claim(
        "O6.vanilla",
        "Without normalization all samples end up on one line.",
        DANESHMAND,
        "participation ratio after 500 layers, d = 32, 64, 128, each of 3 seeds",
        Between(1 - 1e-9, 1.7),
        4.0,
    ),
    _claim(
        "O6.layer_norm",
        "Layer normalization does not prevent that collapse.",
        f"The contrast is that of {DANESHMAND}",
        "participation ratio after 500 layers, d = 32, 64, 128, each of 3 seeds",
        Between(1 - 1e-9, 1.7),
        4.0,
    ),
    _claim(
        "O11.share",
        "A batch-normalized residual branch contributes a share of about 1 / l to the variance behind block l.",
        DE_SMITH,
        "l times the share, smallest and largest of blocks 10 to 50, each of 3 seeds",
        Between(0.7, 1.3),
        20.0,
    ),
    _claim(
        "O11.no_norm",
        "Without normalization every residual block doubles the signal.",
        DE_SMITH,
        "growth of the second moment per block, each of 3 seeds",
        Between(1.9, 2.1),
        1.05,
    ),
    _claim(
        "O11.gradient",
        "On a skip connection the explosion becomes a power law: the squared gradient grows as the variance to the "
        "power pi / (pi - 1).",
        f"Algebra in this chapter, with the factors of {YANG}",
        "exponent of the squared gradient in the inverse variance, blocks 5 to 50, each of 3 seeds",
        Between(1.32, 1.62),
        1.0,
    ),
    _claim(
        "O4.dual",
        "The Fisher spectrum, also with a batch normalization of the outputs, follows from the Gram matrix of the "
        "plain network's output gradients.",
        f"Linear algebra; used by {KARAKIDA}",
        "largest difference of eigenvalues from those of the dense matrix, over the largest of them, each of 3 seeds",
        Below(1e-10),
        1e-4,
    ),
    _claim(
        "O4.vanilla",
        "The largest eigenvalue of the Fisher matrix grows in proportion to the width.",
        KARAKIDA,
        BOTH,
        Between(0.85, 1.1),
        0.3,
    ),
    _claim(
        "O4.mean_last",
        "Subtracting the batch mean of the outputs makes it independent of the width.",
        KARAKIDA,
        BOTH,
        FLAT,
        0.9,
    ),
    _claim(
        "O4.bn_last",
        "So does batch normalization of the outputs.",
        KARAKIDA,
        BOTH,
        FLAT,
        0.9,
    ),
    _claim(
        "O4.layer_norm",
        "Layer normalization in the hidden layers does not.",
        KARAKIDA,
        "exponent in the width, as many samples as units, each of 3 seeds",
        Above(0.7),
        0.1,
    ),
    _claim(
        "O4.middle",
        "Neither does batch normalization in the hidden layers.",
        KARAKIDA,
        "exponent in the width, as many samples as units, each of 3 seeds",
        Above(0.5),
        0.1,
    ),
    _claim(
        "O4.no_mean",
        "Where activations have no mean there is no large eigenvalue to begin with, in a plain network.",
        f"The derivation of {KARAKIDA}, with an odd activation and no biases; in this chapter",
        "exponent in the width, tanh without biases, no normalization, each of 3 seeds",
        FLAT,
        0.9,
    ),
    _claim(
        "O4.fixed_n",
        "The remedy needs as many samples as units: with 64 samples at every width the eigenvalue grows all the same.",
        KARAKIDA,
        "exponent in the width, tanh with biases, outputs without their mean, 64 samples, each of 3 seeds",
        Above(0.5),
        0.25,
    ),
    _claim(
        "O4.fixed_n_bn",
        "So does batch normalization of the outputs need them.",
        KARAKIDA,
        "exponent in the width, tanh with biases, batch-normalized outputs, 64 samples, each of 3 seeds",
        Above(0.5),
        0.25,
    ),
    _claim(
        "O4.digits",
        "Subtracting the batch mean of the outputs makes it independent of the width for images as well.",
        f"{KARAKIDA}, who assume inputs drawn from a Gaussian, is stretched here",
        "exponent in the width, images instead of random inputs, as many samples as units, each of 3 seeds",
        Above(0.25),
        0.05,
        NEGATIVE,
        full=Above(0.1),
    ),
)
