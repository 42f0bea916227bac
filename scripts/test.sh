#!/usr/bin/env bash
# Everything that judges podpath: style, the tests that need nothing, then those that need root.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/machine.sh
source scripts/machine.sh

# Says why the tests marked `needs root: make test` can't run here, with the next step; fails if they can.
root_tests_lack() {
    if ! is_root; then
        # shellcheck disable=SC2016 # for the reader's shell to expand
        echo 'they need root. Next: sudo -E env "PATH=$PATH" make test'
    elif ! toolchain >/dev/null 2>&1; then
        echo "the eBPF toolchain is incomplete. Next: make setup"
    elif ! unshare --net true 2>/dev/null; then
        echo "this root may not make network namespaces. Next: a virtual machine, or a privileged container"
    else
        return 1
    fi
}

scripts/lint.sh
cargo test --workspace

if reason=$(root_tests_lack); then
    say "not run: the tests in the kernel and on real namespaces: $reason"
    if must_be_complete; then exit 1; fi
else
    scripts/root-tests.sh
fi
