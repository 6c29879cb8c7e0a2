"""Single objects: each function draws one normal `Scene` on a canvas."""
