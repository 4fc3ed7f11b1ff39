"""A program of its own that runs generated code within limits and says whether it passed.

``program.py`` is its beginning: it supervises, from outside. ``boundaries.py`` is what the kernel
enforces, ``census.py`` what is counted over all processes, ``calls.py`` how tests in one process
call code in another. Standard library only.
"""
