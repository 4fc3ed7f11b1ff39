#!/bin/bash
# A bootable Debian root file system for a virtual board; nothing in it is run on this machine.
#   root.sh ARCH SUITE MIRROR ROOT KEY.pub      ARCH: arm64 or armhf; ROOT: a new folder
#   root.sh packages                            prints what it installs
# The packages are unpacked with dpkg -x and the few things their scripts would do are done by
# hand: about half a minute, no emulation, no binfmt, no chroot. The price: the board's own dpkg
# knows no package, so apt cannot be used in it. Files belong to root and pi is 1000: run it as root, or
# in fakeroot together with what reads the folder. KEYRING: the key ring. The downloads go into ROOT.apt.
set -euo pipefail
packages="?essential systemd-sysv systemd-timesyncd dbus libpam-systemd udev kmod procps iproute2
  openssh-server sudo python3 python3-venv ca-certificates"
[ "${1-}" != packages ] || { echo $packages; exit; }
[ $# = 5 ] || { sed -n 2,9p "$0"; exit 2; }
arch=$1 suite=$2 mirror=$3 root=$(realpath -m "$4") key=$(cat "$5")
apt=$root.apt
mkdir -p "$apt"/etc "$apt"/state/lists/partial "$apt"/cache/archives/partial
: >"$apt"/status
echo "deb [arch=$arch signed-by=${KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}] $mirror $suite main" >"$apt"/etc/sources.list
private_apt() {
  apt-get -qq -o APT::Architecture="$arch" -o APT::Architectures="$arch" \
    -o Dir::Etc::sourcelist="$apt"/etc/sources.list -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::lists="$apt"/state/lists -o Dir::State::status="$apt"/status \
    -o Dir::Cache="$apt"/cache "$@"
}
private_apt update
set -f # ?essential is no file name
# shellcheck disable=SC2086
private_apt install -y --download-only --no-install-recommends $packages
set +f

# Merged /usr before anything is unpacked, else the links would become folders.
mkdir -p "$root"/usr
for name in bin sbin lib; do mkdir -p "$root/usr/$name"; ln -sfn "usr/$name" "$root/$name"; done
for package in "$apt"/cache/archives/*.deb; do
  dpkg --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink --numeric-owner
done

# What the packages' scripts would have done.
cd "$root"
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
add_user() { # name, number, home, shell
  echo "$1:x:$2:$2:$1:$3:$4" >>etc/passwd
  echo "$1:x:$2:" >>etc/group
}
add_user pi 1000 /home/pi /bin/bash
add_user sshd 100 /run/sshd /usr/sbin/nologin
add_user messagebus 101 /nonexistent /usr/sbin/nologin
add_user systemd-network 998 / /usr/sbin/nologin
add_user systemd-timesync 997 / /usr/sbin/nologin
for group in systemd-journal:996 input:995 kvm:994 render:993 sgx:992; do
  echo "${group%:*}:x:${group#*:}:" >>etc/group
done
sed -i 's/^sudo:.*/&pi/' etc/group
sed 's/^\([^:]*\):.*/\1:*:19700:0:99999:7:::/' etc/passwd >etc/shadow
sed 's/^\([^:]*\):.*/\1:*::/' etc/group >etc/gshadow
sed -i 's/^\(root\|pi\):\*/\1:/' etc/shadow # no password: for the console
chmod 640 etc/shadow etc/gshadow
chgrp 42 etc/shadow etc/gshadow
echo 'pi ALL=(ALL) NOPASSWD: ALL' >etc/sudoers.d/pi
chmod 440 etc/sudoers.d/pi
for kind in account auth password session; do
  case $kind in
    session) printf '%s\n' 'session required pam_unix.so' 'session optional pam_systemd.so' ;;
    *) echo "$kind required pam_unix.so nullok" ;;
  esac >etc/pam.d/common-$kind
done
cp etc/pam.d/common-session etc/pam.d/common-session-noninteractive
[ -e usr/bin/awk ] || ln -s mawk usr/bin/awk
[ -e usr/bin/sh ] || ln -s dash usr/bin/sh
cat usr/share/ca-certificates/mozilla/*.crt >etc/ssl/certs/ca-certificates.crt
[ -e etc/profile ] || cp usr/share/base-files/profile etc/profile
mkdir -p home/pi/.ssh var/lib/dbus var/log/journal etc/ssh
cp etc/skel/.bashrc etc/skel/.profile home/pi/
echo "$key" >home/pi/.ssh/authorized_keys
chmod 700 home/pi home/pi/.ssh
chown -R 1000:1000 home/pi
cp usr/share/openssh/sshd_config etc/ssh/sshd_config
for kind in ed25519 ecdsa rsa; do
  [ -e etc/ssh/ssh_host_${kind}_key ] || ssh-keygen -q -t $kind -N '' -C board -f etc/ssh/ssh_host_${kind}_key
done
echo raspberrypi >etc/hostname
printf '127.0.0.1 localhost raspberrypi\n::1 localhost\n' >etc/hosts
echo nameserver 10.0.2.3 >etc/resolv.conf
printf '/dev/vda / ext4 defaults,noatime 0 1\n' >etc/fstab # as Raspberry Pi OS does
printf '[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\n' >etc/systemd/network/wired.network
: >etc/machine-id

# Units, without systemctl, which may be absent here.
enable() { mkdir -p "etc/systemd/system/$1.wants"; ln -sfn "/lib/systemd/system/$2" "etc/systemd/system/$1.wants/${3:-$2}"; }
enable multi-user.target ssh.service
enable multi-user.target systemd-networkd.service
enable sysinit.target systemd-timesyncd.service
enable getty.target serial-getty@.service serial-getty@ttyAMA0.service
ln -sfn /lib/systemd/system/multi-user.target etc/systemd/system/default.target
for unit in systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
  e2scrub_all.timer fstrim.timer; do
  ln -sfn /dev/null etc/systemd/system/$unit
done
rm -rf "$apt"
