#!/usr/bin/env bash
# The tests that need root, each in a process of its own, as many at a time as there are processors. What a test says
# is kept in target/root-tests, and shown if it fails. For test.sh; `root-tests.sh WORD...` runs those alone whose
# names, as they are shown, have one of the words in them.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/machine.sh
source scripts/machine.sh

# How long a test may take, in seconds. The longest takes 550 where nothing else runs, and about twice that where
# something does; all of them together take 800, so that one that hangs leaves time for the others.
limit=1800

said=$PWD/target/root-tests
self=$PWD/scripts/root-tests.sh

# Those that have the machine to themselves: they measure, or compare what was measured.
is_alone() {
    case $1 in
        benches::* | changes::no_flow_* | compare::*) ;;
        probe::hundreds_of_denied_flows_take_as_long_as_one) ;;
        # They fill a processor, and count what is lost meanwhile.
        dataplanes::every_kind_of_traffic* | live::*_none_is_lost) ;;
        *) return 1 ;;
    esac
}

# Those that take longest begin first, so that no processor is left without work while they end.
is_long() { [[ $1 == differential::* || $1 == changes::* || $1 == random::* ]]; }

# The programs that hold tests, each behind the folder of its package, where cargo would run it.
programs() {
    cargo test --workspace --lib --bins --tests --no-run --message-format=json-render-diagnostics |
        sed -nE 's|.*"manifest_path":"([^"]*)/Cargo.toml".*"profile":\{[^}]*"test":true\}.*"executable":"([^"]*)".*|\1\t\2|p'
}

# How a test is shown: the program's name without cargo's number, and the test's.
shown() {
    local program=${1##*/}
    echo "${program%-*}::$2"
}

# A line for each test: the folder, the program, the test's name, with tabs between.
tests() {
    local folder program test
    while IFS=$'\t' read -r folder program; do
        "$program" --ignored --list --format terse </dev/null | while read -r test; do
            printf '%s\t%s\t%s\n' "$folder" "$program" "${test%: test}"
        done
    done
}

# What there is that has the number of a test's program in its name: states, namespaces, pins, memory control groups.
traces() {
    # Some of these folders may not be there.
    { find /run/podpath /run/netns /sys/fs/bpf/podpath /sys/fs/cgroup -mindepth 1 -maxdepth 2 2>/dev/null || true; } |
        grep -E "^/(run|sys/fs/bpf)/[a-z]+/(podpath-)?(test|bench(-[a-z]+)*)-$1([-.][^/]*)?\$|^/sys/fs/cgroup/.*podpath-bench(-[a-z]+)*-$1-"
}

# Removes what a test has left that did not end by itself, or failed, and says what it was. In the file that is named are
# the numbers of its processes' group and of its program, which stands beside those that it tests.
remove_traces() {
    local group number path left
    read -r group number <"$1" || return 0
    kill -KILL -- "-$group" 2>/dev/null || true
    left=$(traces "$number") || return 0
    # Processes of a cluster have groups of their own, and its state says which they are.
    sed -nE 's|^/run/podpath/([^/.]+)$|\1|p' <<<"$left" | xargs -r -n 1 "${2%/deps/*}/podpath" down || true
    while read -r path; do
        case $path in
            /run/netns/*)
                ip netns pids "${path##*/}" 2>/dev/null | xargs -r kill -KILL || true
                ip netns delete "${path##*/}" 2>/dev/null || true
                ;;
            /sys/fs/cgroup/*) rmdir "$path" 2>/dev/null || true ;;
            *) rm -rf "$path" ;;
        esac
        if [[ -e $path ]]; then echo "left behind: $path"; else echo "removed: $path"; fi
    done <<<"$left"
}

# Runs the test of such a line. A program that ran none has failed, and one that does not end in time.
run() {
    local folder program test code=0 begun=$SECONDS name log numbers
    IFS=$'\t' read -r folder program test <<<"$1"
    name=$(shown "$program" "$test")
    log=$said/${name//:/-}.log
    numbers=${log%.log}.numbers
    # shellcheck disable=SC2016 # for the other shell to expand, which becomes the program
    (cd "$folder" && exec timeout --kill-after=10 "$limit" bash -c 'echo $PPID $$ >"$0"; exec "$@"' \
        "$numbers" "$program" --ignored --exact "$test" --test-threads=1) </dev/null >"$log" 2>&1 || code=$?
    if [[ $code == 0 ]] && grep -q '^test result: ok\. 1 passed' "$log"; then
        printf 'ok     %4d s  %s\n' $((SECONDS - begun)) "$name"
    else
        if ((SECONDS - begun >= limit)); then printf '\nit did not end within %d s\n' "$limit" >>"$log"; fi
        remove_traces "$numbers" "$program" >>"$log" 2>&1
        printf 'FAILED %4d s  %s (exit code %d)\n%s\n' $((SECONDS - begun)) "$name" "$code" "$(sed 's/^/    /' "$log")"
        return 1
    fi
}

# Runs the tests of a list, so many at a time.
run_all() { xargs --no-run-if-empty -d '\n' -n 1 -P "$1" "$self" one <"$2"; }

if [[ ${1:-} == one ]]; then
    run "$2"
    exit
fi

rm -rf "$said"
mkdir -p "$said"
programs >"$said/programs"
tests <"$said/programs" >"$said/tests"
for list in long others alone; do : >"$said/$list"; done
while IFS=$'\t' read -r folder program test; do
    name=$(shown "$program" "$test")
    if [[ $# -gt 0 ]] && ! grep -qF -f <(printf '%s\n' "$@") <<<"$name"; then continue; fi
    list=others
    if is_long "$name"; then list=long; fi
    if is_alone "$name"; then list=alone; fi
    printf '%s\t%s\t%s\n' "$folder" "$program" "$test" >>"$said/$list"
done <"$said/tests"

code=0
cat "$said/long" "$said/others" >"$said/together"
run_all "$(nproc)" "$said/together" || code=1
run_all 1 "$said/alone" || code=1
wanted=$(cat "$said/together" "$said/alone" | wc -l)
passed=$(grep -l '^test result: ok\. 1 passed' "$said"/*.log | wc -l || true)
if [[ $wanted == 0 ]]; then say "no test that needs root has $* in its name: scripts/root-tests.sh without a word runs all"; fi
say "$passed of $wanted tests that need root passed, in $SECONDS s"
[[ $code == 0 && $wanted != 0 && $passed == "$wanted" ]]
