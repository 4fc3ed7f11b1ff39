"""One folder per device: ``toolchain.cmake`` builds for it, ``profile.toml`` says what it has.

Holds no code.
"""
