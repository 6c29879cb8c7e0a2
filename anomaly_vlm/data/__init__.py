"""Sample index, data sets, transforms, data module."""
