"""The fastest way to run a part on this device; everything above is unaware of it."""

from .guards import constant, transforms_active
from .matrix import centre, covariance, gram, mix
from .moments import affine, moments
from .processes import Processes, all_sum
from .roots import cholesky_inverse, inverse_sqrt, lifted, newton_inverse_sqrt, positive, principal_axes, trace
from .tokens import scale_tokens
from .windows import along, local_response, window_moments

__all__ = [
    "Processes", "affine", "all_sum", "along", "centre", "cholesky_inverse", "constant", "covariance", "gram",
    "inverse_sqrt", "lifted", "local_response", "mix", "moments", "newton_inverse_sqrt", "positive", "principal_axes",
    "scale_tokens", "trace", "transforms_active", "window_moments",
]  # fmt: skip
