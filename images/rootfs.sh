#!/bin/sh
# Lays out the root of an image: rootfs.sh PROGRAM FOLDER. The program, the shared libraries that it needs, and what almost
# every program expects; nothing else, no shell among it. `cargo box` makes its images by the same list, and a test compares
# the two.
set -eu
program=$1
root=$2
name=$(basename "$program")
umask 022
mkdir -p "$root/tmp" "$root/etc/ssl/certs" "$root/usr/local/bin"
chmod 1777 "$root/tmp"
printf 'nonroot:x:65532:65532::/:/\n' > "$root/etc/passwd"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
  install -m 644 "$(readlink -f /etc/ssl/certs/ca-certificates.crt)" "$root/etc/ssl/certs/ca-certificates.crt"
else
  rmdir "$root/etc/ssl/certs" "$root/etc/ssl"
fi
install -m 755 "$program" "$root/usr/local/bin/$name"
# A static program makes ldd fail: no line names a path then.
if ldd "$program" 2>/dev/null | grep 'not found'; then
  echo "rootfs.sh: $program needs a library that is not installed" >&2
  exit 1
fi
for library in $(ldd "$program" 2>/dev/null | tr ' \t' '\n\n' | grep '^/' | grep -v ':$' || true); do
  mkdir -p "$root$(dirname "$library")"
  install -m 755 "$(readlink -f "$library")" "$root$library"
done
