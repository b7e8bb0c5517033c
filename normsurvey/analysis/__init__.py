"""Curvature, conditioning and invariance of any `torch.nn.Module`.

The functions here know nothing of this package's own layers: they take a module and a closure `loss(model)`.
"""

from normsurvey.analysis.conditioning import (
    LayerMoments,
    LayerRows,
    condition_number,
    dominance,
    eigenvalues,
    layer_moments,
    layer_rows,
    spread,
)
from normsurvey.analysis.curvature import Hessian, Verification, gradient, private_buffers, select_parameters, verify
from normsurvey.analysis.fisher import OutputGram, linear_gram, output_gram, output_jacobian
from normsurvey.analysis.invariance import (
    homogeneity_error,
    norm_growth_error,
    radial_component,
    scale_invariance,
    scaled,
    scaling_errors,
)
from normsurvey.analysis.kronecker import (
    FisherBlock,
    batch_fisher_spectra,
    deflated,
    fisher_blocks,
    log_correlation,
    sampled_cross_entropy,
)
from normsurvey.analysis.lanczos import Spectrum, gradient_energy, lanczos, spectral_density
from normsurvey.analysis.landscape import (
    GradientProbe,
    Shift,
    Signals,
    covariate_shift,
    kurtosis,
    passed_energy,
    probe_gradient,
    signals,
)
from normsurvey.analysis.newton import newton_error, newton_errors
from normsurvey.analysis.propagation import Propagation, growth_rate, propagate, scaling_exponent
from normsurvey.analysis.rotation import (
    Rotation,
    RotationTracker,
    equilibrium_angle,
    equilibrium_angle_adamw,
    equilibrium_norm,
    equilibrium_norm_adamw,
    predicted_norms,
)
from normsurvey.analysis.stochasticity import (
    Shift,
    calibration_error,
    disturbance,
    estimation_shift,
    outputs_over_batches,
    predictions_over_batches,
    reliability,
)

__all__ = [
    "FisherBlock",
    "GradientProbe",
    "Hessian",
    "LayerMoments",
    "LayerRows",
    "OutputGram",
    "Propagation",
    "Rotation",
    "RotationTracker",
    "Shift",
    "Signals",
    "Spectrum",
    "Verification",
    "batch_fisher_spectra",
    "calibration_error",
    "condition_number",
    "covariate_shift",
    "deflated",
    "disturbance",
    "dominance",
    "eigenvalues",
    "equilibrium_angle",
    "equilibrium_angle_adamw",
    "equilibrium_norm",
    "equilibrium_norm_adamw",
    "estimation_shift",
    "fisher_blocks",
    "gradient",
    "gradient_energy",
    "growth_rate",
    "homogeneity_error",
    "kurtosis",
    "lanczos",
    "layer_moments",
    "layer_rows",
    "linear_gram",
    "log_correlation",
    "newton_error",
    "newton_errors",
    "norm_growth_error",
    "output_gram",
    "output_jacobian",
    "outputs_over_batches",
    "passed_energy",
    "predicted_norms",
    "predictions_over_batches",
    "private_buffers",
    "probe_gradient",
    "propagate",
    "radial_component",
    "reliability",
    "sampled_cross_entropy",
    "scale_invariance",
    "scaled",
    "scaling_errors",
    "scaling_exponent",
    "select_parameters",
    "signals",
    "spectral_density",
    "spread",
    "verify",
]
