"""A method of one's own, outside the suite: a linear probe of patch tokens against two texts."""

from own_method.probe import TextProbe

__all__ = ["TextProbe"]
