#!/usr/bin/env bash
# A Python with NumPy for another processor, from Debian's packages, to be run under qemu (Debian: qemu-user).
#   emulated_root.sh arm64 FOLDER        or s390x, which stores numbers the other way round
# Adds the architecture to this machine's package lists, and installs nothing on it.
set -euo pipefail
ARCHITECTURE=$1 FOLDER=$2
dpkg --add-architecture "$ARCHITECTURE"
apt-get update -qq
mkdir -p "$FOLDER/packages"
cd "$FOLDER/packages"
PACKAGES=(libc6 libgcc-s1 libstdc++6 libpython3.11-minimal libpython3.11-stdlib python3.11-minimal python3.11
    python3-numpy libblas3 liblapack3 libgfortran5 libexpat1 zlib1g libffi8 libssl3 libbz2-1.0 liblzma5 libuuid1
    libsqlite3-0 libcrypt1 libtinfo6 libncursesw6 libreadline8 libdb5.3 libnsl2 libtirpc3)
apt-get download -qq "${PACKAGES[@]/%/:$ARCHITECTURE}"
for file in *.deb; do dpkg --extract "$file" ..; done
cd ..
# The alternatives that the packages' scripts would have set.
libraries=$(dirname "$(find usr/lib -name libblas.so.3 | head -1)")/..
ln -sf blas/libblas.so.3 "$libraries/libblas.so.3"
ln -sf lapack/liblapack.so.3 "$libraries/liblapack.so.3"
