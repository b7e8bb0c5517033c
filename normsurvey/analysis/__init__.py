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
from normsurvey.analysis.newton import newton_error, newton_errors

__all__ = [
    "FisherBlock",
    "Hessian",
    "LayerMoments",
    "LayerRows",
    "OutputGram",
    "Spectrum",
    "Verification",
    "batch_fisher_spectra",
    "condition_number",
    "deflated",
    "dominance",
    "eigenvalues",
    "fisher_blocks",
    "gradient",
    "gradient_energy",
    "homogeneity_error",
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
    "private_buffers",
    "radial_component",
    "sampled_cross_entropy",
    "scale_invariance",
    "scaled",
    "scaling_errors",
    "select_parameters",
    "spectral_density",
    "spread",
    "verify",
]
