#!/bin/sh
# Starts the awq-edge in use, after a look at its files. Written by install.sh; every upgrade leaves
# it where it is, so that a damaged release can be told even if all of its files are empty.
release=$(CDPATH='' cd -P -- #PREFIX#/current 2>/dev/null && pwd -P) && [ -x "$release/bin/python" ] || {
  printf '%s\n' 'awq-edge: the installation is damaged, or the Python that it was made with is gone: install it again.' >&2
  exit 1
}
exec "$release/bin/python" -I -B -c #PROGRAM# "$release" "$@"
