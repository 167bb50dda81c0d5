#!/usr/bin/env bash
# The main job on one machine: A publishes, B mirrors, A forgets and stops, C fetches from B, and the trees are compared.
# usage: NIPFS=path/to/nipfs demo.sh [INPUT]     INPUT: a store path, file or directory; default: what the machine has
set -euo pipefail

nipfs=${NIPFS:?path of the nipfs binary}
input=${1:-}
work=$(mktemp -d "${TMPDIR:-/tmp}/nipfs-demo.XXXXXX")
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    chmod -R u+w "$work" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { printf 'demo FAILED: %s\n' "$*" >&2; exit 1; }
field() { # FIELD FILE: that field's number in each JSON line, summed
    grep -o "\"$1\":[0-9]*" "$2" | awk -F: '{ sum += $2 } END { printf "%d", sum }'
}
human() { awk -v n="$1" 'BEGIN { split("B KB MB GB TB", u, " "); i = 1; while (n >= 1000 && i < 5) { n /= 1000; i++ } printf "%.1f %s", n, u[i] }'; }
now() { date +%s.%N; }
rate() { awk -v b="$1" -v s="$2" -v e="$3" 'BEGIN { t = e - s; if (t < 0.001) t = 0.001; printf "%.2f s, %.0f MB/s", t, b / t / 1e6 }'; }

# serve NAME ARGS…: starts a node and waits for its ready line; sets http_NAME, peer_NAME and pid_NAME.
serve() {
    local name=$1 pid line= deadline
    shift
    "$nipfs" serve --state "$work/$name" --http 127.0.0.1:0 --listen /ip4/127.0.0.1/tcp/0 "$@" >"$work/$name.out" 2>"$work/$name.log" &
    pid=$!
    pids+=("$pid")
    deadline=$((SECONDS + 20))
    while ! line=$(grep -m1 '^ready ' "$work/$name.out"); do
        kill -0 "$pid" 2>/dev/null || { cat "$work/$name.log" >&2; fail "$name did not start"; }
        [ $SECONDS -lt $deadline ] || fail "$name was not ready within 20 s"
        sleep 0.05
    done
    printf -v "http_$name" %s "$(sed -E 's/.* http=([^ ]+).*/\1/' <<<"$line")"
    printf -v "peer_$name" %s "$(sed -E 's/.* peer=([^ ]+).*/\1/' <<<"$line")"
    printf -v "pid_$name" %s "$pid"
    echo "$name: $line"
}

# describe TREE: one line a file, with everything a NAR keeps: type, executable bit, name, content or target.
describe() {
    local root=$1
    if [ -L "$root" ]; then printf 'l %s\n' "$(readlink "$root")"; return; fi
    if [ -f "$root" ]; then printf 'f %s %s\n' "$([ -x "$root" ] && echo x || echo -)" "$(sha256sum <"$root")"; return; fi
    (cd "$root" && find . -mindepth 1 -print0 | LC_ALL=C sort -z |
        while IFS= read -r -d '' f; do
            if [ -L "$f" ]; then printf 'l %q -> %q\n' "$f" "$(readlink "$f")"
            elif [ -d "$f" ]; then printf 'd %q\n' "$f"
            else printf 'f %s %q\n' "$([ "$(($(stat -c '0%a' "$f") & 0100))" -ne 0 ] && echo x || echo -)" "$f"; fi
        done
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum)
}

# installed_closure: a store path that is in use here, with the largest closure between 100 MB and 2 GB. Nothing if there is none.
installed_closure() {
    command -v nix-store >/dev/null && [ -r /nix/var/nix/db/db.sqlite ] || return 0
    local root bytes best=0 found=
    for root in /run/current-system "$HOME/.nix-profile" /nix/var/nix/profiles/default /nix/var/nix/gcroots/*; do
        root=$(readlink -f "$root" 2>/dev/null) || continue
        case $root in /nix/store/*.drv) continue ;; /nix/store/*) ;; *) continue ;; esac
        bytes=$(nix-store -qR "$root" 2>/dev/null | xargs -r nix-store -q --size 2>/dev/null | awk '{ s += $1 } END { printf "%d", s }')
        if [ "$bytes" -ge 100000000 ] && [ "$bytes" -le 2000000000 ] && [ "$bytes" -gt "$best" ]; then
            best=$bytes
            found=$root
        fi
    done
    echo "$found"
}

# --- what to publish: real files of this machine ------------------------------------------------------------------
say "Input"
inputs=()
if [ -n "$input" ]; then
    inputs=("$input")
elif closure=$(installed_closure) && [ -n "$closure" ]; then
    inputs=("$closure")
else
    # Directories until there are 100 MB and 2,000 files, with executables and symlinks among them.
    mkdir -p "$work/input"
    bytes=0
    files=0
    for dir in /usr/bin /usr/share/perl /usr/share/zoneinfo /usr/lib/python3 /usr/lib/git-core /usr/lib/x86_64-linux-gnu /usr/lib/gcc /usr/include /usr/share/doc /usr/share /usr/lib; do
        [ -d "$dir" ] || continue
        [ "$bytes" -ge 100000000 ] && [ "$files" -ge 2000 ] && break
        copy=$work/input/$(tr / _ <<<"${dir#/}")
        cp -a "$dir" "$copy" 2>/dev/null || true
        # A NAR holds files, directories and symlinks only; an unreadable file cannot be published.
        find "$copy" ! -type f ! -type d ! -type l -delete
        bytes=$(du -sb --apparent-size "$work/input" | cut -f1)
        files=$(find "$work/input" -type f | wc -l)
        inputs+=("$copy")
    done
    echo "copied $files files, $(human "$bytes"), $(find "$work/input" -type l | wc -l) symlinks, $(find "$work/input" -type f -perm -u+x | wc -l) executables"
fi
printf '  %s\n' "${inputs[@]}"

# --- A publishes ---------------------------------------------------------------------------------------------------
say "A publishes"
"$nipfs" key generate demo-1 --state "$work/a" >/dev/null
key=$("$nipfs" key public --state "$work/a")
serve a
start=$(now)
"$nipfs" publish --state "$work/a" --json "${inputs[@]}" >"$work/published"
end=$(now)
"$nipfs" pin ls --state "$work/a" --json >"$work/pins"
paths=$(wc -l <"$work/published")
total=$(field narSize "$work/pins")
echo "A: $paths store paths, $(human "$total") of NARs published in $(rate "$total" "$start" "$end"); signed by ${key%%:*}"
head -3 "$work/published"

# --- B mirrors -----------------------------------------------------------------------------------------------------
say "B mirrors every CID of A"
serve b
start=$(now)
"$nipfs" mirror pull --state "$work/b" --json "$http_a" --trusted-public-key "$key" --peer "$peer_a" >"$work/mirrored"
end=$(now)
moved=$(field bitswap "$work/mirrored")
[ "$(field http "$work/mirrored")" -eq 0 ] || fail "B got NAR bytes over HTTP"
echo "B: $(wc -l <"$work/mirrored") paths pinned, $(human "$moved") over bitswap in $(rate "$moved" "$start" "$end")"

# --- A cleans up and goes away -------------------------------------------------------------------------------------
say "A unpins, collects and stops"
"$nipfs" pin ls --state "$work/a" | awk '{ print $1 }' | xargs "$nipfs" pin rm --state "$work/a" >/dev/null
"$nipfs" gc --state "$work/a"
kill "$pid_a"
wait "$pid_a" || fail "A did not stop cleanly"

# --- C fetches from B ----------------------------------------------------------------------------------------------
say "C fetches from B"
mkdir "$work/out"
mapfile -t wanted < <(grep -o '"path":"[^"]*"' "$work/published" | cut -d'"' -f4)
start=$(now)
"$nipfs" fetch --state "$work/c" --json "${wanted[@]}" --from "$http_b" --peer "$peer_b" --trusted-public-key "$key" --no-closure --out "$work/out" >"$work/fetched"
end=$(now)
bitswap=$(field bitswap "$work/fetched")
http=$(field http "$work/fetched")
echo "C: $(wc -l <"$work/fetched") paths in $(rate "$total" "$start" "$end"): $(human "$bitswap") over bitswap, $(human "$http") over HTTP"
[ "$http" -eq 0 ] || fail "C got $http NAR bytes over HTTP"
[ "$bitswap" -gt 0 ] || fail "C got nothing over bitswap"

# --- the same, byte for byte? --------------------------------------------------------------------------------------
say "Compare"
for ((i = 0; i < ${#wanted[@]}; i++)); do
    store_path=${wanted[$i]}
    original=$store_path
    [ -e "$original" ] || [ -L "$original" ] || original=
    for candidate in "${inputs[@]}"; do
        [ -n "$original" ] || { [ "${store_path#*-}" = "$(basename "$candidate")" ] && original=$candidate; }
    done
    [ -n "$original" ] || fail "no original for $store_path"
    cmp <(describe "$original") <(describe "$work/out/$(basename "$store_path")") || fail "$store_path differs from $original"
done
echo "identical: ${#wanted[@]} trees, names, executable bits, symlinks and contents"
"$nipfs" status --state "$work/b"
say "demo passed"
