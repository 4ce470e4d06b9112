#!/usr/bin/env bash
# The packed crate in other people's programs: an empty one, made by the README's lines alone, and one whose device vello
# draws with. Both are built outside the repository and run on the adapter at hand.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cargo=${CARGO:-cargo}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export CARGO_TARGET_DIR=$root/target/consumers

# The first block of the README in this language.
block() {
	awk -v opening="$1" '$0 == "```" opening { inside = 1; next } inside && $0 == "```" { exit } inside' "$root/README.md"
}

# What is published, where the README's lines expect it.
(cd "$root" && "$cargo" package --quiet --no-verify --allow-dirty)
tar -xzf "$CARGO_TARGET_DIR"/package/wgpu-flash-attention-*.crate -C "$place"
mv "$place"/wgpu-flash-attention-* "$place/wgpu-flash-attention"

cd "$place"
block sh >lines
grep -q 'cargo add' lines || { echo "the README has no lines to install by" >&2; exit 1; }
bash -euo pipefail lines
cd hello
block rust,no_run >src/main.rs
"$cargo" run --quiet | tee output
grep -q 'O starts with \[' output

cd "$place"
"$cargo" new --quiet --bin drawing && cd drawing
"$cargo" add --quiet --path ../wgpu-flash-attention
"$cargo" add --quiet pollster bytemuck
"$cargo" add --quiet vello@0.11 --no-default-features --features wgpu
cp "$root/tests/consumers/vello.rs" src/main.rs
"$cargo" run --quiet
