#!/usr/bin/env bash
# Installs the Debian packages that tests, demo and symbol look-up use and that are not there yet.
# Without root or apt it says what is missing and goes on: the tests that need it skip with that reason.
set -euo pipefail
packages=(qemu-system-x86 qemu-system-common seabios ipxe-qemu python3-bpfcc bpftool bpftrace gcc g++ libc6-dev softhsm2 iproute2 tcpdump)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed (needs root and apt): ${missing[*]}" >&2
    exit 0
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update -q >/dev/null
    apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}
