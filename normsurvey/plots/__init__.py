"""One look for every figure of the book: the style, and pictures of what a method normalizes."""

from . import areas, style

__all__ = ["areas", "style"]
