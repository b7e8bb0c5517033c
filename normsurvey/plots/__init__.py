"""One look for every figure of the book: the style, and pictures of what a method normalizes."""

from . import areas, cards, matrices, style, vector, verdicts

__all__ = ["areas", "cards", "matrices", "style", "vector", "verdicts"]
