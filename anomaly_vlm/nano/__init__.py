"""The nano CLIP: a CLIP of a few megabytes that the project trains itself, on pictures that it draws itself.

`words` (captions and vocabulary), `model` (architecture, first weights, file), `text` (the text tower, first), `pool` and
`views` (pictures), `image` (the image tower against the frozen text tower), `report` (what it is worth).
"""
