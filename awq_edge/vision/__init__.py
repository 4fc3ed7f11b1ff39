"""Pictures before a model sees them: decoded, resized, cut into tiles, placed in a prompt.

Runs on devices: numpy, and Pillow (the extra ``[vision]``) for decoding files alone.
"""
