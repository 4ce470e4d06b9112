#!/usr/bin/env bash
# software-vulkan.sh FOLDER: Mesa 25's software Vulkan driver, for Firefox and Dawn, which refuse that of Debian 12. Its
# packages are unpacked into FOLDER, nothing is installed; `FOLDER/lavapipe.json` and `FOLDER/libraries` are for
# VK_DRIVER_FILES and LD_LIBRARY_PATH. The loader is the system's (libvulkan1).
set -euo pipefail
folder=$(realpath -m "${1:?usage: software-vulkan.sh FOLDER}")
[ -e "$folder/lavapipe.json" ] && exit 0
rm -rf "$folder"
apt=$folder/apt
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,etc/apt.conf.d,etc/preferences.d,etc/sources.list.d,etc/trusted.gpg.d}
: > "$apt/status"
mirror=$(awk '/^URIs:/ {print $2; exit} $1 == "deb" {print $2; exit}' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true)
[ -n "$mirror" ] || { echo "this is for Debian and its relatives: no package source is configured" >&2; exit 1; }
for suite in bookworm bookworm-backports; do
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
done > "$apt/etc/sources.list"
options=(-qq -o "Dir::State=$apt/state" -o "Dir::Cache=$apt/cache" -o "Dir::Etc=$apt/etc" -o "Dir::State::status=$apt/status"
	-o APT::Sandbox::User=root -o Acquire::Languages=none -o Debug::NoLocking=1)
apt-get "${options[@]}" update
apt-get "${options[@]}" install -y --no-install-recommends --download-only -t bookworm-backports mesa-vulkan-drivers >/dev/null
for package in "$apt"/cache/archives/*.deb; do
	case $package in
	# The C and C++ libraries stay the system's.
	*/libc6_* | */libgcc-s1_* | */libstdc++6_*) ;;
	*) dpkg-deb -x "$package" "$folder" ;;
	esac
done
rm -rf "$apt"
mv "$folder"/usr/lib/*-linux-gnu "$folder/libraries"
printf '{"ICD":{"api_version":"1.4.305","library_path":"%s/libraries/libvulkan_lvp.so"},"file_format_version":"1.0.1"}\n' "$folder" > "$folder/lavapipe.json"
