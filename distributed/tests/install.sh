#!/usr/bin/env bash
# OpenMPI, its headers, and the libclang that reads them: from Debian, if they are not there.
set -euo pipefail
command -v mpirun > /dev/null && command -v mpicc > /dev/null && ls /usr/lib/llvm-*/lib/libclang*.so* > /dev/null 2>&1 && exit
packages="openmpi-bin libopenmpi-dev libclang-dev"
as_root=
if [ "$(id -u)" != 0 ]; then
  command -v sudo > /dev/null && sudo -n true 2> /dev/null || {
    echo "MPI is missing: sudo apt-get install $packages" >&2
    exit 1
  }
  as_root=sudo
fi
command -v apt-get > /dev/null || { echo "MPI is missing: install OpenMPI, its headers and libclang" >&2; exit 1; }
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends $packages
