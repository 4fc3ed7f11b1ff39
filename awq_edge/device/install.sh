#!/bin/sh
# Installs awq-edge and the model of this bundle for one user: no network, no root, no compiler.
#
#   sh install.sh [--prefix DIR] [--check] [--ignore-memory] [--no-selftest]
#
# --prefix DIR      where to install (default: ~/.local/share/awq-edge)
# --check           look whether this machine is fit, print what was found, change nothing
# --ignore-memory   install even if the free memory looks too small for the model
# --no-selftest     leave out the comparison of all kernels with the reference
#
# A release is complete, and tested, before it replaces the one in use; after an error everything
# is as it was. Written by 'awq-edge bundle'; runs in any POSIX shell.
set -eu

#VALUES#

prefix="${XDG_DATA_HOME:-$HOME/.local/share}/awq-edge"
check_only=no
ignore_memory=no
selftest=yes

say() { printf '%s\n' "$*" >&2; }
fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case "$1" in
    --prefix)
      [ $# -ge 2 ] || fail "--prefix needs a folder."
      prefix="$2"
      shift
      ;;
    --check) check_only=yes ;;
    --ignore-memory) ignore_memory=yes ;;
    --no-selftest) selftest=no ;;
    -h | --help)
      say "usage: sh install.sh [--prefix DIR] [--check] [--ignore-memory] [--no-selftest]"
      exit 0
      ;;
    *) fail "unknown option $1; --help tells what there is." ;;
  esac
  shift
done
case "$prefix" in
  /*) ;;
  *) prefix="$PWD/$prefix" ;;
esac

# ---- is this machine fit? -----------------------------------------------------------------------

# What a kilobyte count is for people.
megabytes() { printf '%s MB' "$(($1 / 1024))"; }

check_system() {
  [ "$(uname -s)" = Linux ] || fail "this bundle is for Linux, and this is $(uname -s)."
  machine=$(uname -m)
  [ "$machine" != arm64 ] || machine=aarch64
  case "$machine" in
    armv6l | armv7l | armv8l)
      fail "this system is 32-bit ($machine): install the 64-bit system, for example Raspberry Pi OS (64-bit)."
      ;;
  esac
  [ "$machine" = "$MACHINE" ] ||
    fail "this bundle is for $MACHINE and this machine is $machine: make one for it with 'awq-edge bundle FILE --target ...'."

  # A 64-bit kernel may run 32-bit programs; the fifth byte of a program tells what they are.
  bits=$(getconf LONG_BIT 2>/dev/null) || bits=
  if [ -z "$bits" ]; then
    bits=32
    [ "$(od -An -tu1 -j4 -N1 /bin/sh | tr -d ' ')" != 2 ] || bits=64
  fi
  [ "$bits" = 64 ] ||
    fail "the kernel is 64-bit but the programs are 32-bit: install the 64-bit system, for example Raspberry Pi OS (64-bit); a 64-bit kernel alone is not enough."

  glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || glibc=
  glibc=${glibc#glibc }
  [ -n "$glibc" ] ||
    fail "this system has no glibc: use a system such as Debian, Raspberry Pi OS or Ubuntu."
  glibc_minor=${glibc#*.}
  glibc_minor=${glibc_minor%%.*}
  if [ "${glibc%%.*}" -lt 2 ] || { [ "${glibc%%.*}" -eq 2 ] && [ "$glibc_minor" -lt 31 ]; }; then
    fail "this system has glibc $glibc and 2.31 is the oldest that works: upgrade the system."
  fi

  if [ "$machine" = aarch64 ] && grep -q '^Features' /proc/cpuinfo &&
    ! grep -qw asimd /proc/cpuinfo; then
    fail "this CPU has no Advanced SIMD (asimd), which every kernel needs."
  fi
}

# Sets python and python_version.
check_python() {
  python=
  found=
  for name in python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
    version=$("$name" -c 'import struct, sys; assert struct.calcsize("P") == 8; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    found="${found:+$found, }$version"
    case " $PYTHONS " in *" $version "*) ;; *) continue ;; esac
    "$name" -c 'import venv' 2>/dev/null || fail "Python $version lacks its venv module: run 'sudo apt install python3-venv'."
    python=$(command -v "$name")
    python_version=$version
    break
  done
  [ -n "$found" ] || fail "there is no 64-bit Python 3 here: run 'sudo apt install python3'."
  [ -n "$python" ] ||
    fail "this bundle has packages for Python $PYTHONS and this machine has $found: make it again with 'awq-edge bundle ... --python ${found%%,*}'."
}

check_memory() {
  memory_total=$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
  memory_free=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
  [ -n "$memory_free" ] || fail "/proc/meminfo does not tell the free memory."
  if [ "$memory_free" -lt "$MEMORY_KB" ] && [ "$ignore_memory" = no ]; then
    fail "the model needs $(megabytes "$MEMORY_KB") of memory with $CONTEXT tokens of context, and $(megabytes "$memory_free") of $(megabytes "$memory_total") are free: close other programs, use a smaller model, or go on with --ignore-memory."
  fi
}

check_disk() {
  folder="$prefix"
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  [ -w "$folder" ] || fail "$folder cannot be written: choose another place with --prefix DIR."
  # device, blocks, used, available, ...: fields at the end of the line, for a name may hold blanks
  disk_free=$(df -Pk "$folder" | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*%.*/\1/p')
  [ "$disk_free" -ge "$DISK_KB" ] ||
    fail "the installation needs $(megabytes "$DISK_KB") of disk in $folder, and $(megabytes "$disk_free") are free: delete something, or choose another place with --prefix DIR."
}

check_system
check_python
check_memory
check_disk

if [ "$check_only" = yes ]; then
  board=
  [ ! -r /proc/device-tree/model ] || board=$(tr -d '\000' </proc/device-tree/model)
  printf '%s\n' "board=$board" "machine=$machine" "glibc=$glibc" "python=$python_version" \
    "memory_total_kb=$memory_total" "memory_free_kb=$memory_free" "disk_free_kb=$disk_free" \
    "prefix=$prefix"
  exit 0
fi

# ---- install ------------------------------------------------------------------------------------

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$here"
[ -f "$here/SHA256SUMS" ] || fail "SHA256SUMS is not in $here: copy the whole bundle again."
bad=$(sha256sum -c SHA256SUMS 2>/dev/null | sed -n 's/: FAILED.*$//p') || bad="a file"
[ -z "$bad" ] || fail "$(printf '%s' "$bad" | head -n 1) is damaged or missing: copy the bundle again."
[ -f "$here/wheels/$python_version.txt" ] || fail "wheels/$python_version.txt is missing: copy the bundle again."

release="$prefix/releases/$VERSION-$(date +%Y%m%d%H%M%S)-$$"
finished=no
clean_up() {
  [ "$finished" = yes ] || rm -rf "$release" "$prefix/models/.$MODEL.$$" "$prefix/.current.$$"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "Installing awq-edge $VERSION for Python $python_version into $prefix"
mkdir -p "$prefix/releases" "$prefix/models" || fail "$prefix cannot be written: choose another place with --prefix DIR."
"$python" -m venv --without-pip "$release" || fail "a virtual environment cannot be made in $release."
set --
while read -r name; do
  case "$name" in
    pip-*) pip="$here/wheels/$name/pip" ;;
    *) set -- "$@" "$here/wheels/$name" ;;
  esac
done <"$here/wheels/$python_version.txt"
"$release/bin/python" "$pip" install --quiet --no-index --no-deps --no-cache-dir \
  --disable-pip-version-check "$@" || fail "the packages cannot be installed; pip's words stand above."

"$release/bin/awq-edge" --version >/dev/null || fail "the installed program does not start."
if [ "$selftest" = yes ]; then
  say "Self-test: every kernel against the reference"
  "$release/bin/awq-edge" selftest --quiet >&2 || fail "the self-test failed: this machine computes wrong results."
fi

# A second name for the bundle's file where that is possible, otherwise a copy.
ln "$here/$MODEL" "$prefix/models/.$MODEL.$$" 2>/dev/null ||
  cp "$here/$MODEL" "$prefix/models/.$MODEL.$$" || fail "the model cannot be copied into $prefix/models."
mv -f "$prefix/models/.$MODEL.$$" "$prefix/models/$MODEL"
ln -s "releases/${release##*/}" "$prefix/.current.$$"
"$release/bin/python" -c 'import os, sys; os.replace(sys.argv[1], sys.argv[2])' \
  "$prefix/.current.$$" "$prefix/current"
finished=yes

for old in "$prefix/releases/"*; do
  [ "$old" = "$release" ] || rm -rf "$old"
done

program="$prefix/current/bin/awq-edge"
link="$HOME/.local/bin/awq-edge"
if [ ! -e "$link" ] || [ -L "$link" ]; then
  mkdir -p "$HOME/.local/bin" && ln -sfn "$program" "$link"
fi
case ":$PATH:" in
  *":$HOME/.local/bin:"*) program=awq-edge ;;
esac
say "Done. Try: $program run $prefix/models/$MODEL -p 'Once upon a time'"
