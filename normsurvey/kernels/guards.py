"""When a fused kernel may be trusted."""

import torch
import torch.autograd.forward_ad as forward_ad

__all__ = ["transforms_active"]


def transforms_active() -> bool:
    """Whether a ``torch.func`` transform or forward-mode differentiation is running.

    Second derivatives through torch's fused normalization kernels are silently wrong there (pytorch issues
    196699, 196700, 198017), so that every layer takes its composed path.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
