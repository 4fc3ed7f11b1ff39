"""Other tools' quantised checkpoints in, and files for other tools out.

One file per format; none of them chooses a code, a scale or a zero-point.
"""
