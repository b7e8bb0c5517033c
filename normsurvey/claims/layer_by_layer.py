"""What the chapter "Layer by layer" asserts: how far the linear model reaches into a network, and what it misses."""

import math

from . import Above, Below, Between, register
from .record import claims_of

CHAPTER = "2_theory/layer_by_layer"
PROXIMAL = "Frerix et al., Proximal Backpropagation, ICLR 2018, arXiv 1706.04638"
KRONECKER = "Martens and Grosse, ICML 2015, arXiv 1503.05671; Huang et al., ECCV 2020, arXiv 2002.10801"
QUANTITATIVE = "Cai, Li and Shen, ICML 2019, arXiv 1810.00122"
DECOUPLING = "Kohler et al., AISTATS 2019, arXiv 1805.10694"
FILTERS = "Chai, Pilanci and Murmann, arXiv 2002.10674"
SEEDS = "each of 3 seeds"
NEGATIVE = "does not hold at this scale"
HIGH = "100 steps at learning rate 1 (full scale: 500 at 0.32)"


def _claim(*fields, **more) -> None:
    register(claims_of(CHAPTER)(*fields, **more))


def _exact(name: str, statement: str, source: str, measures: str, limit: float = 1e-12) -> None:
    _claim(name, statement, source, measures, Below(limit), 1e4 * limit)


_exact(
    "M3.target",
    "The back-propagated gradient of a layer is that of its least-squares problem with moved outputs as targets.",
    PROXIMAL,
    f"relative difference of the two gradients, worst hidden layer of 3 networks, {SEEDS}",
)
_exact(
    "M3.white",
    "Behind whitened inputs the implicit (proximal) step has the direction of the gradient step.",
    f"The implicit step is the gradient times (Sigma_x + I / tau)^-1; {PROXIMAL}",
    f"1 - cosine, tau = 100 / lambda_max, worst hidden layer, {SEEDS}",
    1e-8,
)
_claim(
    "M3.raw",
    "Without normalization the gradient step points elsewhere than the implicit step that fits the targets.",
    f"The implicit step is the gradient times (Sigma_x + I / tau)^-1; {PROXIMAL}",
    f"cosine, tau = 100 / lambda_max, plain network, largest over hidden layers, {SEEDS}",
    Below(0.9),
    0.99,
)
_exact(
    "M2.product",
    "The largest eigenvalue of a Kronecker product is the product of the largest eigenvalues.",
    f"Linear algebra; used layer by layer in {KRONECKER}",
    f"relative difference of the two, dense product of a layer's moments, {SEEDS}",
)
_exact(
    "M2.one_sample",
    "For one sample the Fisher block of a layer is a Kronecker product.",
    f"Its gradient is one: output gradient times input; {KRONECKER}",
    f"relative difference of block and product in the Frobenius norm, worst layer, {SEEDS}",
)
_exact(
    "M2.linear",
    "In a linear network, with the square loss, the Fisher block of every layer is a Kronecker product.",
    f"Gradients there do not depend on the inputs; {KRONECKER}",
    f"relative difference of block and product in the Frobenius norm, worst layer, {SEEDS}",
)
_claim(
    "M2.linear_control",
    "Control: with ReLUs between the same weights no hidden layer has such a block.",
    f"The approximation made in {KRONECKER}",
    f"relative difference of block and product in the Frobenius norm, least over hidden layers, {SEEDS}",
    Above(0.05),
    1e-3,
)
_claim(
    "M2.initialisation",
    "At initialisation the Kronecker estimate tells which layers have a large Fisher eigenvalue.",
    KRONECKER,
    f"correlation over layers of log lambda_max with its estimate, with and without BN, {SEEDS}",
    Above(0.95),
    0.5,
    full=Above(0.9),
    expected_full=NEGATIVE,
)
_claim(
    "M2.trained_with",
    "With batch normalization it still does after training.",
    KRONECKER,
    f"correlation over layers of log lambda_max with its estimate, with BN, after 200 steps, {SEEDS}",
    Above(0.9),
    0.5,
)
_claim(
    "M2.trained_without",
    "It still does after training without normalization.",
    KRONECKER,
    "correlation over layers of log lambda_max with its estimate, without BN, after 200 steps, worst of 3 seeds",
    Below(0.95),
    0.99,
    expected=NEGATIVE,
    full=Between(0.9, 0.985),
    expected_full="holds",
)
_claim(
    "M2.matrix",
    "The block as a whole, not only its largest eigenvalue, is close to the Kronecker product.",
    f"The approximation made in {KRONECKER}",
    f"relative error in the Frobenius norm at initialisation, worst layer, with and without BN, {SEEDS}",
    Above(0.1),
    0.01,
    expected=NEGATIVE,
)
_claim(
    "M2.interaction",
    "In front of a batch norm, the block made from rows overstates the Fisher block of the batch.",
    f"Batch norm sends back gradients at all rows for one sample's loss; compare {KRONECKER}",
    f"lambda_max from rows over that of the batch, with BN at initialisation, least over hidden layers, {SEEDS}",
    Above(1.2),
    1.0,
)
_exact(
    "M2.no_interaction",
    "Control: without batch norm the block made from rows is the Fisher block.",
    KRONECKER,
    f"relative difference of lambda_max from rows and of the batch, without BN, worst hidden layer, {SEEDS}",
)
_exact(
    "O7.deflated_gradient",
    "The gradient of a neuron with a batch norm behind it is a sum of inputs without their mean and without what its "
    "own output explains.",
    f"Backward pass of batch normalization; the same projection as in {QUANTITATIVE}",
    f"relative difference from the back-propagated gradient, all neurons and hidden layers, {SEEDS}",
)
_exact(
    "O7.deflated_moment",
    "The second moment of these inputs is the matrix H* that governs batch-normalized least squares.",
    QUANTITATIVE,
    f"relative difference of the two matrices, 10 neurons of each hidden layer, {SEEDS}",
)
_exact(
    "O7.interlacing",
    "The eigenvalues of H* lie between neighbouring eigenvalues of H.",
    QUANTITATIVE,
    f"largest violation over lambda_max, 100 directions, {SEEDS}",
)
_claim(
    "O7.condition_number",
    "So batch normalization never worsens the condition number of least squares.",
    QUANTITATIVE,
    f"kappa(H*) / kappa(H), largest of 100 directions, {SEEDS}",
    Between(0, 1),
    1.1,
)
_claim(
    "O7.bound",
    "With the best length at each step, descent on the direction converges linearly, at the rate of its bound.",
    DECOUPLING,
    f"error over bound, largest of all steps with an error above 1e-12, {SEEDS}",
    Below(1),
    1.5,
)
_claim(
    "O7.any_rate",
    "With batch normalization no learning rate of the weights makes least squares blow up.",
    QUANTITATIVE,
    f"largest excess loss on the way, over that of predicting 0, learning rates 1e-3 to 1e7, {SEEDS}",
    Between(0, 4),
    math.inf,
)
_claim(
    "O7.decades",
    "With batch normalization least squares is solved within one budget of steps over decades of learning rates.",
    QUANTITATIVE,
    f"decades of learning rates with a relative excess loss below 1e-6 after 5000 steps, {SEEDS}",
    Above(4),
    1.0,
)
_claim(
    "O7.plain_diverges",
    "Control: gradient descent without it diverges above 2 / lambda_max.",
    "LeCun, Kanter and Solla, NeurIPS 1990, Second order properties of error surfaces",
    f"least relative excess loss at learning rates from 1.02 times 2 / lambda_max to 1e7, {SEEDS}",
    Above(1),
    1e-3,
)
_claim(
    "O9.smallest",
    "Batch normalization raises the smallest eigenvalue of what each layer sees.",
    FILTERS,
    f"lambda_min(Sigma_x) with over without BN, layers 2 and up, at 0 and 200 steps, least of all, {SEEDS}",
    Above(3),
    1.0,
    full=Below(1),
    expected_full=NEGATIVE,
)
_claim(
    "O9.largest",
    "Batch normalization lowers the largest eigenvalue of what each layer sees at least threefold.",
    FILTERS,
    f"lambda_max(Sigma_x) without over with BN, layers 2 and up, at 0 and 200 steps, least of all, {SEEDS}",
    Below(3),
    5.0,
    expected=NEGATIVE,
)
_claim(
    "O9.largest_median",
    "In the median layer it does.",
    FILTERS,
    f"lambda_max(Sigma_x) without over with BN, median of layers 2 and up, lower of 0 and 200 steps, {SEEDS}",
    Above(3),
    1.0,
)
_claim(
    "O9.threshold",
    "Batch normalization raises the largest stable learning rate.",
    FILTERS,
    f"lr_max with over without BN, the largest with a loss below 2 after 100 (full scale: 500) steps, {SEEDS}",
    Above(3),
    1.0,
)
_claim(
    "O9.speed",
    "At a hundredth of its largest stable learning rate, a network with batch normalization learns faster.",
    FILTERS,
    f"training loss with over without BN after 200 (full scale: 500) steps, each at 0.01 of its own lr_max, {SEEDS}",
    Below(0.8),
    1.5,
    full=Between(0.8, 1.2),
    expected_full=NEGATIVE,
)
_claim(
    "O9.speed_equal",
    "At one low learning rate for both it does so too.",
    FILTERS,
    f"training loss with over without BN after 200 (full scale: 500) steps, both at 0.01 of the plain lr_max, {SEEDS}",
    Above(1),
    0.5,
    expected=NEGATIVE,
)
_claim(
    "O9.stability_with",
    "At a high learning rate training with batch normalization is stable.",
    FILTERS,
    f"training loss with BN after {HIGH}, {SEEDS}",
    Below(0.5),
    2.3,
    full=Below(2),
)
_claim(
    "O9.stability_without",
    "Control: at that learning rate training without it fails.",
    FILTERS,
    f"training loss without BN after {HIGH}, {SEEDS}",
    Above(2),
    0.5,
)
