#!/usr/bin/env bash
# Brings what podpath is built and tested with: only what lacks, saying what. It never downloads a Rust toolchain
# from rustup, and without root it says what to install instead of installing it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/machine.sh
source scripts/machine.sh

# program:package, where the program's name shows that the package is there
programs=(cc:gcc ip:iproute2 iptables:iptables nft:nftables tshark:tshark)

bpf_linker_version=$(sed -n 's/^pub const BPF_LINKER: &str = "\(.*\)";/\1/p' userspace/src/toolchain.rs)
oldest_minor=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*"/\1/p' Cargo.toml)

# Installs packages, or says the command that would.
install_packages() {
    if ! has_apt; then
        say "lacks $*. Next: install what they are called in your distribution; make setup"
        return 1
    fi
    if ! can_install; then
        say "lacks $*, and only root installs. Next: sudo apt-get install --no-install-recommends $*; make setup"
        return 1
    fi
    refresh_lists
    say "installing $*"
    # --no-remove: a package that is in the way is yours to remove.
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends --no-remove \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

lists_are_fresh=
refresh_lists() {
    if [[ -z $lists_are_fresh ]] && can_install; then
        say "refreshing apt's package lists"
        apt-get update -qq -o DPkg::Lock::Timeout=300 >/dev/null || say "apt-get update failed; going on with the lists as they are"
        lists_are_fresh=yes
    fi
}

has_package() { has_apt && [[ -n $(apt-cache show --no-all-versions "$1" 2>/dev/null) ]]; }

has_installed() {
    local package
    for package in "$@"; do
        # shellcheck disable=SC2016 # the braces are dpkg-query's own
        [[ $(dpkg-query --show --showformat '${db:Status-Status} ' "$package" 2>/dev/null) == installed* ]] || return 1
    done
}

basics() {
    local entry lacking=()
    for entry in "${programs[@]}"; do
        command -v "${entry%%:*}" >/dev/null || lacking+=("${entry##*:}")
    done
    [[ -e /usr/include/stdio.h ]] || lacking+=(libc6-dev)
    if [[ ${#lacking[@]} -gt 0 ]]; then
        # What can't be installed is said; the build shows whether it was needed.
        install_packages "${lacking[@]}" || ! can_install
    fi
    if ! command -v cargo >/dev/null; then
        say "lacks cargo: install Rust 1.$oldest_minor or newer, see https://rustup.rs"
        return 1
    fi
}

# A second Rust, beside the one that builds everything else: Debian's for browsers, or Ubuntu's newest by version.
install_compiler() {
    refresh_lists
    if has_package rustc-web; then
        install_packages rustc-web cargo-web rust-web-src
        return
    fi
    local minor
    for minor in $(has_apt && apt-cache pkgnames rustc-1. | sed -n 's/^rustc-1\.\([0-9]*\)$/\1/p' | sort -rn); do
        if ((minor >= oldest_minor)) && has_package "rust-1.$minor-src"; then
            install_packages "rustc-1.$minor" "cargo-1.$minor" "rust-1.$minor-src"
            return
        fi
    done
    return 1
}

# The linker is built here, against the LLVM that the compiler has.
install_linker() {
    local llvm=$1
    local prefix=/usr/lib/llvm-$llvm
    local packages=("llvm-$llvm-dev" libzstd-dev zlib1g-dev libxml2-dev libffi-dev)
    if ! has_installed "${packages[@]}"; then
        refresh_lists
        has_package "llvm-$llvm-dev" || return 1
        install_packages "${packages[@]}" || return 1
    fi
    say "installing bpf-linker $bpf_linker_version for LLVM $llvm (about a minute)"
    PATH=$prefix/bin:$PATH LLVM_PREFIX=$prefix cargo install --quiet --locked --force bpf-linker \
        --version "$bpf_linker_version" --no-default-features --features "llvm-$llvm"
}

bpf_toolchain() {
    local lacks
    lacks=$(toolchain 2>/dev/null) && return
    # What is named by hand is not replaced by something else.
    if [[ -n ${PODPATH_BPF_RUSTC:-}${PODPATH_BPF_LINKER:-} ]]; then lacks=; fi
    if [[ $lacks == compiler ]]; then
        install_compiler || true
        lacks=$(toolchain 2>/dev/null) && return
    fi
    if [[ $lacks == linker* ]]; then
        install_linker "${lacks#linker }" || true
    fi
    if ! toolchain >/dev/null; then
        say "all but the eBPF engine can be built"
        if must_be_complete; then exit 1; fi
    fi
}

# Where programs and tables are pinned. The running kernel may lack it (a container): then the engine says so itself.
bpffs() {
    if is_root && [[ -d /sys/fs/bpf && $(stat -f -c %T /sys/fs/bpf) != bpf_fs ]]; then
        say "mounting the bpf file system at /sys/fs/bpf"
        mount -t bpf bpf /sys/fs/bpf || say "cannot mount it: the eBPF engine will not run here"
    fi
}

basics
bpf_toolchain
bpffs
