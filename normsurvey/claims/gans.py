"""What the chapter on GANs asserts: spectral norms and batch statistics in the discriminator."""

from . import Above, Below, Between, Claim, register

SPECTRAL = "Miyato et al., Spectral Normalization for GANs, ICLR 2018, arXiv 1802.05957"
BATCH = "Salimans et al., Improved Techniques for Training GANs, 2016, arXiv 1606.03498, on virtual batch normalization"
RUNS = "each of 3 seeds at learning rates 1e-3 and 5e-3"


def _gan(name, criterion, falsifier, *, statement, source, measures):
    register(
        Claim(
            id=f"A5.{name}",
            statement=statement,
            source=source,
            measures=measures,
            quick=criterion,
            full=criterion,
            expected="holds",
            chapter="3_applications/gans",
            falsifier=falsifier,
        )
    )


_gan(
    "spectral_modes", Above(7), 4,
    statement="With a spectral norm on every weight of the discriminator the generator finds the modes of the data.",
    source=SPECTRAL,
    measures=f"modes covered, of 8, {RUNS}",
)  # fmt: skip
_gan(
    "spectral_product", Between(0.0, 1.1), 149.0,
    statement="The spectral norms of the discriminator's weights then multiply to one, although each is an estimate.",
    source=f"{SPECTRAL}, section 2.1",
    measures=f"product of the weights' largest singular values at the end of training, {RUNS}",
)  # fmt: skip
_gan(
    "plain_product", Above(50.0), 1.0,
    statement="Without a constraint the same product grows during training to far above one.",
    source=f"control of A5.spectral_product; {SPECTRAL}",
    measures=f"product of the weights' largest singular values at the end of training, {RUNS}",
)  # fmt: skip
_gan(
    "slope_bound", Below(1.0001), 2.0,
    statement="The product of the spectral norms bounds the slope of the discriminator.",
    source=f"{SPECTRAL}, section 2.1",
    measures="largest gradient of the score over a grid / (product x output scale), 6 runs with and 6 without",
)  # fmt: skip
_gan(
    "convolution_norm", Between(1.0, 3.0), 4.0,
    statement="For a 3 x 3 convolution the norm of the flattened weight understates that of the map, by 3 at most.",
    source="Fourier transform of the convolution; Sedghi, Gupta and Long, ICLR 2019, arXiv 1805.10408",
    measures="norm of the convolution / norm of its weight as a matrix, Gaussian weights, 3 seeds",
)  # fmt: skip
_gan(
    "verdict_without_batch", Below(1e-12), 1e-3,
    statement="A discriminator with spectral norms judges a sample by itself.",
    source="definition of the method",
    measures="deviation of a sample's score over 50 batches / deviation of the scores over samples, 3 seeds",
)  # fmt: skip
_gan(
    "verdict_with_batch", Above(0.05), 0.0,
    statement="With batch normalization the verdict on one sample depends on the other samples of its batch.",
    source=BATCH,
    measures="deviation of a sample's score over 50 batches / deviation of the scores over samples, 3 seeds",
)  # fmt: skip
_gan(
    "separate_batches_blind", Below(1e-10), 1e-3,
    statement="Judging real and generated samples in separate batches, a discriminator with batch normalization cannot "
    "see where the generated samples lie nor how far they spread, and passes no gradient for it.",
    source="invariance of batch normalization to shift and scale of its input",
    measures="difference of the scores of x and a x + b in batches apart; gradient along shift and scale; 3 seeds",
)  # fmt: skip
_gan(
    "mixed_batch_sees", Above(0.1), 0.0,
    statement="In one batch with the real samples the same displaced samples are told apart.",
    source="control of A5.separate_batches_blind",
    measures="root mean square of the difference of the scores / their deviation, 3 seeds",
)  # fmt: skip
_gan(
    "batchnorm_modes", Below(7), 8,
    statement="Batch normalization in the discriminator, in either kind of batch, loses modes that the others find.",
    source="control of A5.spectral_modes; criterion set after a pilot with half the width and one layer less",
    measures="modes covered, of 8, separate and mixed batches, each of 3 seeds at learning rate 1e-3",
)  # fmt: skip
