#!/usr/bin/env bash
# Style: formatting and lints, of the workspace, of the eBPF crate beside it, and of the scripts.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --check
cargo fmt --manifest-path ebpf/Cargo.toml --check
rustfmt --edition 2024 --check scripts/toolchain.rs
cargo clippy --workspace --all-targets -- -D warnings
if command -v shellcheck >/dev/null; then
    shellcheck -x scripts/*.sh .ci/run
fi
