"""What the gradient methods share: an optimizer that edits gradients before another optimizer's step."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normsurvey.registry import near


class GradientMethod(Optimizer):
    """An optimizer around a torch optimizer, whose groups and state it shares.

    Subclasses implement `edit`, which changes ``p.grad`` in place before the base optimizer reads it, as
    ``torch.nn.utils.clip_grad_norm_`` would. Their own options live in the param groups, so that groups may
    differ.

    Args:
        params: parameters or param groups, or a torch optimizer to wrap as it is.
        base: class of the optimizer to build, or its name in ``torch.optim``.
        own: this method's options and their defaults.
        base_options: options of `base`, such as ``lr``.

    Raises:
        ValueError: `base` is no optimizer of torch.
        TypeError: neither the method nor `base` has an option of that name.
    """

    def __init__(
        self,
        params: Iterable | Optimizer,
        base: type[Optimizer] | str,
        own: dict[str, Any],
        base_options: dict,
    ) -> None:
        self.base = self.wrapped(params, base, own, base_options)
        state = self.base.state
        super().__init__(self.base.param_groups, self.base.defaults | own)
        self.state, self.base.param_groups = state, self.param_groups

    def wrapped(
        self, params: Iterable | Optimizer, base: type[Optimizer] | str, own: dict, options: dict
    ) -> Optimizer:
        """The base optimizer, built or given."""
        name = type(self).__name__
        if isinstance(params, Optimizer):
            if options:
                raise TypeError(f"{name} wraps an optimizer that exists: set {', '.join(options)} there")
            return params
        cls = optimizer_class(base)
        known = [n for n in inspect.signature(cls).parameters if n != "params"]
        for option in options:
            if option not in known:
                hint = near(option, [*own, *known])
                raise TypeError(f"{name} over {cls.__name__} has no option {option!r}: {hint}")
        return cls(params, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise ``ValueError`` if an option of a param group is out of its range."""

    def edit(self, p: Tensor, group: dict[str, Any]) -> None:
        """Change ``p.grad`` in place; called without gradient mode."""

    @torch.no_grad()
    def edit_gradients(self) -> None:
        """Edit the gradient of every parameter that has one."""
        for p, group in with_gradient(self.param_groups):
            self.edit(p, group)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the base optimizer on the edited gradients; returns the loss of `closure`."""
        if closure is None:
            self.edit_gradients()
            return self.base.step()

        def edited() -> float:
            with torch.enable_grad():
                loss = closure()
            self.edit_gradients()
            return loss

        return self.base.step(edited)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with this method's options beside those of the base optimizer."""
        super().add_param_group(param_group)
        self.check_group(self.param_groups[-1])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})


def refuse_unknown_options(cls: type[Optimizer]) -> type[Optimizer]:
    """Let the constructor of `cls` answer an unknown option with ``TypeError`` and the near names."""
    init, known = cls.__init__, inspect.signature(cls).parameters

    @functools.wraps(init)
    def checked(self, *args: Any, **options: Any) -> None:
        for option in options:
            if option not in known:
                raise TypeError(f"{cls.__name__} has no option {option!r}: {near(option, known)}")
        init(self, *args, **options)

    cls.__init__ = checked
    return cls


def optimizer_class(base: type[Optimizer] | str) -> type[Optimizer]:
    """The optimizer class that `base` is, or names."""
    if isinstance(base, type) and issubclass(base, Optimizer):
        return base
    known = [n for n, v in vars(torch.optim).items() if isinstance(v, type) and issubclass(v, Optimizer)]
    if base not in known:
        raise ValueError(f"base={base!r} is no optimizer of torch.optim: {near(str(base), known)}")
    return getattr(torch.optim, base)


def with_gradient(groups: list[dict[str, Any]]) -> Iterable[tuple[Tensor, dict[str, Any]]]:
    """Each parameter that has a gradient, with its group; sparse gradients raise."""
    for group in groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} has a sparse gradient; use sparse=False"
                )
            yield p, group


def check_range(argument: str, value: float, low: float = 0.0, high: float = float("inf")) -> None:
    """Raise ``ValueError`` naming the argument, unless ``low <= value < high``."""
    if not low <= value < high:
        raise ValueError(f"{argument}={value!r} is out of range; pass {low} <= {argument} < {high}")
