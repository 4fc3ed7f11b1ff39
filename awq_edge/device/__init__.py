"""From a workstation to a board: cross-compile, bundle, deploy; on the board: doctor and self-test.

Nothing here is imported by ``import awq_edge``.
"""
