#!/usr/bin/env bash
# scripts/setup.sh - installs what Winnow needs on Debian 12 or Ubuntu 24.04 and later; does nothing where all is there.
#   scripts/setup.sh          to build and to run
#   scripts/setup.sh test     also what the tests and benchmarks need
set -euo pipefail

packages=(gcc libc6-dev pkg-config cmake ninja-build
    libopenmpi-dev openmpi-bin libzmq3-dev libprotobuf-c-dev protobuf-c-compiler libsqlite3-dev
    libjansson-dev libyaml-dev libjpeg-dev libpng-dev libwebp-dev
    libpcre2-dev libutf8proc-dev libsodium-dev libhwloc-dev libmicrohttpd-dev)
if [ "${1:-}" = test ]; then
    packages+=(g++ libcmocka-dev libdnnl-dev clang libclang-rt-14-dev
        slurm-wlm munge iproute2 ethtool procps iputils-ping) # scripts/cluster
    # Other releases than Debian 12 name clang's run time and oneDNN differently; tests do without them.
    if ! grep -qs bookworm /etc/os-release; then
        packages=("${packages[@]/libclang-rt-14-dev/}")
        packages=("${packages[@]/libdnnl-dev/}")
    fi
fi

missing=()
for p in "${packages[@]}"; do
    [ -n "$p" ] || continue
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "setup: installing ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "setup: not root and no sudo: install these packages first" >&2; exit 1; }
    as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
