"""When a fused kernel may be trusted."""

import functools
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad

__all__ = ["constant", "transforms_active"]


def transforms_active() -> bool:
    """Whether a ``torch.func`` transform or forward-mode differentiation is running.

    Second derivatives through torch's fused normalization kernels are silently wrong there (pytorch issues
    196699, 196700, 198017), so that every layer takes its composed path.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def constant(f: Callable) -> Callable:
    """Let ``f`` make plain tensors on the CPU wherever it is called, so that they may be kept for later calls.

    What is made inside a ``torch.func`` transform, in inference mode or under another default device, belongs there.
    """

    @functools.wraps(f)
    def plain(*args):
        with torch._C._DisableFuncTorch(), torch.inference_mode(False), torch.device("cpu"):
            return f(*args)

    return plain
