# shellcheck shell=bash
# What setup.sh and test.sh ask of the machine. Sourced.

say() { echo "${0##*/}: $*" >&2; }

is_root() { [[ $(id -u) == 0 ]]; }

has_apt() { command -v apt-get >/dev/null; }

can_install() { is_root && has_apt; }

# Where the toolchain must be complete after setup: nothing that root can test may go untested there.
must_be_complete() { [[ ${CI:-} == true ]] && can_install; }

# Prints what lacks of the eBPF toolchain (see toolchain.rs), fails if something does.
toolchain() {
    local finder=target/setup/toolchain source
    for source in scripts/toolchain.rs userspace/src/toolchain.rs; do
        if [[ ! -x $finder || $source -nt $finder ]]; then
            mkdir -p target/setup
            rustc --edition 2024 -o "$finder" scripts/toolchain.rs
        fi
    done
    "$finder"
}
