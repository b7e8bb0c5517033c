"""What the chapter "Where second derivatives go wrong" asserts, about torch 2.13 and about measuring curvature."""

from . import Above, Below, Between, Equal, register
from .record import NEGATIVE, claims_of

CHAPTER = "2_theory/second_derivatives"
ISSUES = "measured with torch 2.13; pytorch issues 196699, 196700 and 198017"
DEFINITION = "Definition of the second derivative"
FUSED = "torch's batch and layer norm, each of 3 seeds"
NETS = "digits networks with batch and layer norm, each of 3 seeds"
_claim = claims_of(CHAPTER)

register(
    _claim(
        "D1.double_backward",
        "Two backward passes give the right Hessian through every normalization of torch.",
        "Pearlmutter, Neural Computation 6, 1994, doi 10.1162/neco.1994.6.1.147",
        "|H - H*| / |H*|, H* by differences of the gradient, 4 norms of torch, each of 3 seeds",
        Below(1e-8),
        1e-2,
    ),
    _claim(
        "D1.jvp_of_grad",
        "So does the forward derivative of a backward pass.",
        ISSUES,
        "|H - H*| / |H*|, 4 norms of torch, each of 3 seeds",
        Below(1e-8),
        1e-2,
    ),
    _claim(
        "D1.grad_of_jvp",
        "The backward derivative of a forward pass is silently wrong through a fused batch or layer norm.",
        ISSUES,
        f"|H - H*| / |H*|, {FUSED}",
        Above(0.1),
        1e-3,
    ),
    _claim(
        "D1.func_hessian",
        "torch.func.hessian, and jacrev of jacrev, are silently wrong through a fused batch or layer norm.",
        ISSUES,
        f"|H - H*| / |H*|, both routes, {FUSED}",
        Above(0.01),
        1e-3,
    ),
    _claim(
        "D1.asymmetry",
        "What they return is not even symmetric.",
        ISSUES,
        f"|H - H^T| / |H| of torch.func.hessian, {FUSED}",
        Above(0.01),
        1e-4,
    ),
    _claim(
        "D1.mechanism",
        "The slope of the norm's weight is derived as if the mean and the standard deviation in it were constants.",
        "First measured here; cause: pytorch issues 196699 and 196700",
        f"|H - H_constant| / |H| of torch.func.hessian, {FUSED}",
        Below(1e-10),
        1e-2,
    ),
    _claim(
        "D1.control",
        "Through norms written in elementary operations, and through this package's own kernels, all routes are right.",
        DEFINITION,
        "|H - H*| / |H*|, worst of 5 routes, batch and layer norm, fused and composed, each of 3 seeds",
        Below(1e-8),
        1e-2,
    ),
    _claim(
        "D1.spectrum",
        "The wrong Hessian's largest eigenvalue looks right.",
        "First measured here; cause: pytorch issues 196699 and 196700",
        f"relative difference of the largest eigenvalue, symmetrised, {NETS}",
        Below(0.01),
        0.1,
    ),
    _claim(
        "D1.trace",
        "Its trace is right to the last digit: the error sits off the diagonal.",
        "First measured here; cause: pytorch issues 196699 and 196700",
        f"relative difference of the trace, {NETS}",
        Below(1e-10),
        1e-3,
    ),
    _claim(
        "D1.product",
        "Its products are wrong.",
        "First measured here; cause: pytorch issues 196699 and 196700",
        f"|H'v - Hv| / |Hv| for a random v, {NETS}",
        Above(0.01),
        1e-4,
        full=Between(0.003, 0.5),
        expected_full=NEGATIVE,
    ),
    _claim(
        "D1.newton",
        "So are the steps that one solves for with it.",
        "First measured here; cause: pytorch issues 196699 and 196700",
        f"relative error of a damped Newton step, {NETS}",
        Above(0.01),
        1e-4,
    ),
    _claim(
        "D1.train_eval",
        "With frozen statistics a batch-normalized network has the same loss and a much sharper Hessian.",
        "First measured here; Ioffe and Szegedy, ICML 2015, arXiv 1502.03167, define the two modes",
        "largest eigenvalue, eval mode over train mode, at training loss 0.1, each of 3 seeds",
        Above(3),
        1.0,
    ),
    _claim(
        "D1.descent",
        "It is the train-mode eigenvalue that training obeys: steps that the eval-mode one forbids descend.",
        "Stability of gradient descent: steps below 2 / lambda",
        "largest L(t+1) / L(t) in 8 steps of gradient descent at 1 / lambda_train, each of 3 seeds",
        Below(1),
        1.5,
    ),
    _claim(
        "D1.rerun",
        "Measuring in train mode on the model's own buffers advances its running statistics, once per product.",
        "Definition of the layer",
        "num_batches_tracked after minus before 64 products, each of 3 seeds",
        Equal(64),
        0,
    ),
    _claim(
        "D1.patient",
        "So the measurement changes the network that is measured.",
        "First measured here; Ioffe and Szegedy, ICML 2015, arXiv 1502.03167, define the two modes",
        "test accuracy in eval mode lost by 64 products on images of one class, each of 3 seeds",
        Above(0.1),
        0.0,
    ),
    _claim(
        "D1.buffers",
        "A Hessian on private copies leaves every buffer as it was.",
        DEFINITION,
        "largest change of any buffer by 64 products, each of 3 seeds",
        Equal(0),
        1e-6,
    ),
    _claim(
        "D1.moments",
        "One Lanczos run knows the moments of the spectrum within the error that it reports.",
        "Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017, doi 10.1137/16M1104974",
        f"|estimate - exact| in reported standard errors, moments 1 to 4, {NETS}",
        Below(4),
        10,
    ),
)
