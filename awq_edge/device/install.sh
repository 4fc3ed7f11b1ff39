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
# A release is complete, tested and on the medium before it replaces the one in use; after an error,
# or when the power goes, everything is as it was. Written by 'awq-edge bundle'; runs in any POSIX
# shell, and what follows the checks in the machine's own Python.
set -eu

#VALUES#

HOME="${HOME:-}"
prefix=
check_only=no
ignore_memory=no
selftest=yes
link_model=no

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
    # Of deploy: this copy of the bundle goes away, so its model needs no second copy.
    --link-model) link_model=yes ;;
    -h | --help)
      say "usage: sh install.sh [--prefix DIR] [--check] [--ignore-memory] [--no-selftest]"
      exit 0
      ;;
    *) fail "unknown option $1; --help tells what there is." ;;
  esac
  shift
done
if [ -z "$prefix" ]; then
  case "${XDG_DATA_HOME:-}" in
    /*) prefix="$XDG_DATA_HOME/awq-edge" ;;
    *)
      [ -n "$HOME" ] || fail "HOME is not set: name a folder with --prefix DIR."
      prefix="$HOME/.local/share/awq-edge"
      ;;
  esac
fi
case "$prefix" in
  /*) ;;
  *) prefix="$PWD/$prefix" ;;
esac
# The letter keeps line breaks at the end, which a substitution would take away.
[ "$(printf '%sx' "$prefix" | LC_ALL=C tr -d '\000-\037\177')" = "${prefix}x" ] ||
  fail "the folder of --prefix has control characters in its name: choose another place."
case "$prefix/" in
  */../* | */./* | *//*) fail "$prefix is written with . or .. or //: write the folder without them." ;;
  /proc/* | /sys/* | /dev/* | /run/*)
    fail "$prefix does not outlast a restart: choose another place with --prefix DIR."
    ;;
esac

# ---- is this machine fit? -----------------------------------------------------------------------

# Decimal digits that any shell can count with.
is_number() {
  case "$1" in
    '' | *[!0-9]* | ????????????????*) return 1 ;;
  esac
}

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
  if ! is_number "${glibc%%.*}" || ! is_number "$glibc_minor"; then
    fail "this system names its glibc '$glibc', and 2.31 is the oldest that works: use a system such as Debian, Raspberry Pi OS or Ubuntu."
  fi
  if [ "${glibc%%.*}" -lt 2 ] || { [ "${glibc%%.*}" -eq 2 ] && [ "$glibc_minor" -lt 31 ]; }; then
    fail "this system has glibc $glibc and 2.31 is the oldest that works: upgrade the system."
  fi

  if [ "$machine" = aarch64 ] && grep -q '^Features' /proc/cpuinfo &&
    ! grep -qw asimd /proc/cpuinfo; then
    fail "this CPU has no Advanced SIMD (asimd), which every kernel needs."
  fi
}

# The version, and a plus if the modules are there that the installer needs.
python_version_program='
import struct, sys
assert struct.calcsize("P") == 8
try: import concurrent.futures, fcntl, hashlib, subprocess, sysconfig, zipfile, zlib
except ImportError: whole = ""
else: whole = "+"
print("%d.%d" % sys.version_info[:2] + whole)
'

# Sets python and python_version.
check_python() {
  python=
  found=
  for name in python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
    version=$("$name" -I -c "$python_version_program" 2>/dev/null) || continue
    found="${found:+$found, }${version%%+}"
    case " $PYTHONS " in *" ${version%%+} "*) ;; *) continue ;; esac
    [ "$version" = "${version%%+}+" ] ||
      fail "Python $version is not whole: run 'sudo apt install python3'."
    version=${version%%+}
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
  is_number "$memory_total" && is_number "$memory_free" ||
    fail "/proc/meminfo does not tell the free memory."
  if [ "$memory_free" -lt "$MEMORY_KB" ] && [ "$ignore_memory" = no ]; then
    fail "the model needs $(megabytes "$MEMORY_KB") of memory with $CONTEXT tokens of context, and $(megabytes "$memory_free") of $(megabytes "$memory_total") are free: close other programs, use a smaller model, or go on with --ignore-memory."
  fi
}

check_disk() {
  folder="$prefix"
  while [ ! -d "$folder" ]; do
    [ ! -e "$folder" ] && [ ! -L "$folder" ] ||
      fail "$folder is no folder: choose another place with --prefix DIR."
    folder=$(dirname "$folder")
  done
  if [ ! -w "$folder" ]; then
    # Who may not, or a disk that the system has made read-only, as it does with a card that fails.
    reason=$(LC_ALL=C mkdir "$folder/.awq-edge.$$" 2>&1) && rmdir "$folder/.awq-edge.$$" ||
      fail "$folder cannot be written (${reason##*: }): choose another place with --prefix DIR."
  fi
  # device, blocks, used, available, ...: fields at the end of the line, for a name may hold blanks
  disk_free=$(df -Pk "$folder" 2>/dev/null | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*%.*/\1/p')
  is_number "$disk_free" ||
    fail "the free space of $folder is unknown: choose another place with --prefix DIR."
  [ "$disk_free" -ge "$DISK_KB" ] ||
    fail "the installation needs $(megabytes "$DISK_KB") of disk in $folder, and $(megabytes "$disk_free") are free: delete something, or choose another place with --prefix DIR."
}

# SERVICE is empty, user or system.
check_service() {
  if [ -z "$SERVICE" ]; then
    [ ! -e "$prefix/awq-edge.service" ] ||
      fail "a service runs from $prefix, and this bundle was made without --service: make it with --service, or end the service and delete $prefix/awq-edge.service."
    return 0
  fi
  if [ "$SERVICE" = user ]; then
    # A login without a session of its own does not say where the user's systemd listens.
    if [ -z "${XDG_RUNTIME_DIR:-}" ] && [ -d "/run/user/$(id -u)" ]; then
      XDG_RUNTIME_DIR="/run/user/$(id -u)"
      export XDG_RUNTIME_DIR
    fi
    systemctl --user show-environment >/dev/null 2>&1 ||
      fail "there is no systemd for this user here, so it cannot have a service: log in with ssh or on the console, or make the bundle without --service."
    return 0
  fi
  systemctl show-environment >/dev/null 2>&1 ||
    fail "this machine does not run systemd, so it cannot have a service: make the bundle without --service."
  [ "$(id -u)" = 0 ] || sudo -n true >/dev/null 2>&1 ||
    fail "a service of the system needs sudo without a password: run 'sudo -v' before, or make the bundle with --service user."
}

check_system
check_python
check_memory
check_disk
check_service

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

# How the installed command begins: a look at the files of the release, then the release itself.
launcher() {
  cat <<'LAUNCHER'
#LAUNCHER#
LAUNCHER
}
release_source() {
  cat <<'RELEASE'
#RELEASE#
RELEASE
}
AWQ_EDGE_LAUNCHER=$(launcher)
AWQ_EDGE_RELEASE_SOURCE=$(release_source)
export HOME AWQ_EDGE_LAUNCHER AWQ_EDGE_RELEASE_SOURCE
exec "$python" -I -B - "$here" "$prefix" "$VERSION" "$MODEL" "$link_model" "$selftest" \
  "$SERVICE" "$MEMORY_MAX" <<'INSTALLER'
#INSTALLER#
INSTALLER
