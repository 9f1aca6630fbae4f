# Sourced by every finding: installs pinned packages in a temporary folder and compares what a program prints.
# shellcheck shell=bash
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# install PACKAGE==VERSION ...
install() {
    echo "» ${0##*/}: installing $*"
    "${PYTHON:-python3}" -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-compile "$@"
}

# program <<'PYTHON' ...: what `expect` runs.
program() {
    cat >"$folder/program.py"
}

# expect <<'OUTPUT' ...: runs the program; exits with 1 unless it prints just this.
expect() {
    local status=0
    cat >"$folder/expected"
    (cd "$folder" && PYTHONWARNINGS=ignore venv/bin/python program.py >output 2>errors) || status=$?
    cat "$folder/output"
    if [ "$status" != 0 ]; then
        cat "$folder/errors"
        echo "CHANGED: the program now ends with exit status $status"
        exit 1
    elif ! diff "$folder/expected" "$folder/output" >"$folder/difference"; then
        echo "CHANGED: < was seen before, > is seen now"
        cat "$folder/difference"
        exit 1
    fi
    echo "unchanged"
}
