#!/usr/bin/env bash
# Runs a command quietly and shows what it does, how long it has taken and the last line it printed.
# A failing command shows its whole output. STEP_FOLDER names a folder that the command fills: its size is shown as well.
# Usage: tools/step.sh "installing PyTorch" COMMAND [ARGUMENT ...]
set -euo pipefail
what="${1:?usage: tools/step.sh WHAT COMMAND [ARGUMENT ...]}"
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
started=$SECONDS
# On a terminal one line is rewritten twice a second; elsewhere a line follows every 30 seconds.
wait_s=30
[ -t 1 ] && wait_s=0.5

last_line() {
    tail -c 2000 "$log" | tr '\r' '\n' | sed -E 's/\x1b\[[0-9;?]*[A-Za-z]//g; s/^ +//' | grep -v '^$' | tail -n 1 || true
}

size=
measured=-9
measure() {
    if [ -n "${STEP_FOLDER:-}" ] && ((SECONDS - measured >= 3)); then
        measured=$SECONDS
        size="$(du -sm "$STEP_FOLDER" 2>/dev/null | cut -f 1 || true) MB in $STEP_FOLDER · "
    fi
}

show() {
    local line
    measure
    line="» $what · $((SECONDS - started)) s · $size$(last_line)"
    if [ -t 1 ]; then printf '\r\033[K%.*s' "$(($(tput cols 2>/dev/null || echo 80) - 1))" "$line"; else echo "$line"; fi
}

[ -t 1 ] || echo "» $what"
"$@" >"$log" 2>&1 &
process=$!
trap 'kill "$process" 2>/dev/null || true; exit 130' INT TERM
next=$wait_s
while kill -0 "$process" 2>/dev/null; do
    if [ -t 1 ]; then
        show
    elif ((SECONDS - started >= next)); then
        show
        next=$((next + wait_s))
    fi
    sleep 0.2
done
status=0
wait "$process" || status=$?
[ -t 1 ] && printf '\r\033[K'
if ((status != 0)); then
    cat "$log" >&2
    echo "error: $what failed with exit code $status after $((SECONDS - started)) s" >&2
    exit "$status"
fi
echo "» $what · done in $((SECONDS - started)) s"
