#!/usr/bin/env bash
# Everything that the demo, the tests and the benchmark need: Debian packages, a Rust toolchain, .venv with the
# project built into it.
#
# Run it, or source it from another script: sourced, it also leaves $VENV set and cargo on PATH.
# A second run finds everything in place and takes seconds. VHOSTVSOCK_SKIP_APT=1 leaves the system's packages alone.

set -euo pipefail

SETUP_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV="$SETUP_ROOT/.venv"
# The same number as rust-version in native/Cargo.toml, and the oldest Python of pyproject.toml.
RUST_MINIMUM=1.85
PYTHON_MINIMUM=3.11

setup_say() { printf 'setup: %s\n' "$*" >&2; }

setup_fail() { # what, remedy
    printf 'setup: error: %s\nsetup: hint: %s\n' "$1" "$2" >&2
    exit 1
}

# Whether version $1 is at least $2.
setup_at_least() { [[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" == "$2" ]]; }

# What os-release calls $1, such as ID or VERSION_ID.
setup_os() {
    # shellcheck disable=SC1091
    (. /etc/os-release 2>/dev/null && printf '%s' "${!1:-}") || true
}

setup_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Runs a long step: its name, then the command. The output is shown only when it fails.
setup_step() {
    local name=$1 log start
    shift
    log=$(mktemp)
    start=$SECONDS
    setup_say "$name ..."
    if ! "$@" >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
    setup_say "$name: done in $((SECONDS - start)) s"
}

# Debian packages that are wanted and not there: one a line.
setup_missing_packages() {
    local list=$SETUP_ROOT/tests/harness/apt-packages.txt package
    {
        printf '%s\n' gcc libc6-dev python3 python3-venv shellcheck
        if [[ -r $list ]]; then sed -e 's/#.*//' -e 's/[[:space:]]//g' "$list"; fi
        setup_rust_packages
    } | sort -u | while read -r package; do
        [[ -n $package ]] || continue
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || printf '%s\n' "$package"
    done
}

# Whether a cargo and rustc that are new enough are on PATH.
setup_have_rust() {
    local tool version
    for tool in cargo rustc; do
        version=$("$tool" --version 2>/dev/null | awk '{print $2}') || return 1
        [[ -n $version ]] && setup_at_least "${version%%[-+]*}" "$RUST_MINIMUM" || return 1
    done
}

# The packages that bring Rust, where it is missing. Debian 12's plain rustc is too old; rustc-web is a newer one.
setup_rust_packages() {
    setup_have_rust && return
    if [[ $(setup_os ID) == debian && $(setup_os VERSION_ID) == 12 ]]; then
        printf '%s\n' rustc-web cargo-web
    else
        printf '%s\n' rustc cargo
    fi
}

setup_apt() {
    local missing
    [[ ${VHOSTVSOCK_SKIP_APT:-} != 1 ]] || return 0
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        setup_say "no apt here (made for Debian 12 and 13). To be installed by hand, if it is not there:"
        setup_say "  python3 >= $PYTHON_MINIMUM with venv, a C compiler, rustc and cargo >= $RUST_MINIMUM, shellcheck,"
        setup_say "  and for the tests what tests/harness/apt-packages.txt lists"
        return 0
    fi
    missing=$(setup_missing_packages | tr '\n' ' ')
    [[ -n ${missing// /} ]] || return 0
    if [[ $(id -u) != 0 ]] && ! command -v sudo >/dev/null; then
        setup_fail "packages are missing: $missing" "as root: apt-get install $missing"
    fi
    setup_step "reading the package lists" setup_root apt-get update -q ||
        setup_say "apt-get update failed; going on with the lists that are there"
    # The names are a list of words.
    # shellcheck disable=SC2086
    setup_step "installing packages: $missing" \
        setup_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing ||
        setup_fail "apt-get could not install: $missing" "see its output above, install them by hand and run this again"
}

# Looks for Rust in the directory $1 first, where what PATH leads to will not do.
setup_look_for_rust_in() {
    local before=$PATH
    setup_have_rust && return
    PATH="$1:$PATH"
    setup_have_rust || PATH=$before
    export PATH
}

setup_check_rust() {
    setup_have_rust || setup_fail "rustc and cargo >= $RUST_MINIMUM were not found" \
        "Debian 12: apt install rustc-web cargo-web; Debian 13: apt install rustc cargo; elsewhere: https://rustup.rs"
}

# The first Python that is new enough and can make virtual environments.
setup_python() {
    local python
    for python in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$python" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (${PYTHON_MINIMUM/./, }))" 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    setup_fail "no python3 >= $PYTHON_MINIMUM with venv was found" "apt install python3 python3-venv"
}

# A sum over all that the build reads: the same sum, no build.
setup_fingerprint() {
    (
        cd "$SETUP_ROOT"
        "$VENV/bin/python" --version
        rustc --version
        find native pyproject.toml scripts/lib/vhostvsock_build.py -path native/target -prune -o \
            -path native/driver -prune -o -path native/fuzz -prune -o -path native/tests -prune -o \
            -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    ) | sha256sum
}

setup_venv() {
    local stamp=$VENV/.vhostvsock-build now python
    if ! "$VENV/bin/python" -c '' 2>/dev/null; then
        python=$(setup_python)
        rm -rf "$VENV"
        setup_step "making the virtual environment .venv" "$python" -m venv "$VENV" ||
            setup_fail "python3 -m venv failed" "apt install python3-venv"
    fi
    # It is part of the fingerprint, so it must not first appear with the build.
    if [[ ! -e $SETUP_ROOT/native/Cargo.lock ]]; then
        cargo generate-lockfile --quiet --manifest-path "$SETUP_ROOT/native/Cargo.toml" ||
            setup_fail "cargo could not resolve the dependencies" "check the network, and run this again"
    fi
    now=$(setup_fingerprint)
    if [[ -e $stamp && $(<"$stamp") == "$now" ]]; then return 0; fi
    rm -f "$stamp"
    setup_step "installing build and test tools into .venv" \
        "$VENV/bin/python" -m pip install -q --disable-pip-version-check "maturin>=1.16,<2" "cffi>=1.16" ||
        setup_fail "pip could not install the build tools" "check the network, or pip's configuration, and run this again"
    # The build tools are in .venv: without isolation, a rebuild is as quick as cargo is. cargo's output is wanted:
    # the first build takes a minute or two.
    setup_step "building the native part and installing vhostvsock (the first time: minutes)" \
        env PATH="$VENV/bin:$PATH" "$VENV/bin/python" -m pip install --disable-pip-version-check \
        --no-build-isolation -e "${SETUP_ROOT}[test]" ||
        setup_fail "the build failed" "see its output above; 'cargo build --release --manifest-path native/Cargo.toml' shows more"
    printf '%s\n' "$now" >"$stamp"
}

setup_main() {
    setup_look_for_rust_in "$HOME/.cargo/bin" # not on the PATH of every shell
    setup_apt
    setup_look_for_rust_in /usr/bin # a rustup without a toolchain may stand before it
    setup_check_rust
    setup_venv
}

setup_main
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then setup_say "ready: $VENV/bin/vhostvsock"; fi
