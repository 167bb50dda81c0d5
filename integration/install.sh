#!/usr/bin/env bash
# Installs what building (`build`), testing (`foreign`, `python`, `npm`) or comparing (`rivals`) needs, on Debian and its
# kin. Does nothing when it is there already; elsewhere it says what is missing.
set -euo pipefail

missing=()
need() { # COMMAND PACKAGE
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null || missing+=("$2")
}

case "${1:-}" in
build)
    need cc gcc
    need curl curl
    if ! command -v cargo >/dev/null; then
        echo "error: no cargo: install Rust (rustup, or your distribution's package), 1.90 or newer" >&2
        exit 1
    fi
    ;;
foreign)
    need nix-store nix-bin
    need nix nix-bin
    need sshd openssh-server
    need ssh openssh-client
    need ip iproute2
    ;;
rivals)
    need nginx nginx-light
    ;;
python)
    need python3 python3
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    ;;
npm)
    need npm npm
    ;;
*)
    echo "usage: $0 build|foreign|python|npm|rivals" >&2
    exit 2
    ;;
esac

[ ${#missing[@]} -eq 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if ! command -v apt-get >/dev/null; then
    echo "error: please install: ${missing[*]} (Debian's package names)" >&2
    exit 1
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
echo "installing: ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq >&2
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
