#!/usr/bin/env bash
# Lints shell scripts, workflows and Dockerfiles. A linter that is missing is named, not passed over in silence.
set -euo pipefail
cd "$(dirname "$0")/.."
lint() {
    local tool="$1"
    shift
    if ! command -v "$tool" >/dev/null; then
        echo "  $tool is not installed: skipped $*"
        return
    fi
    "$tool" "$@"
}
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
lint shellcheck --severity=warning "${scripts[@]}"
mapfile -t workflows < <(git ls-files '.github/workflows/*.yml')
((${#workflows[@]} == 0)) || lint actionlint "${workflows[@]}"
mapfile -t dockerfiles < <(git ls-files 'docker/Dockerfile*')
((${#dockerfiles[@]} == 0)) || lint hadolint "${dockerfiles[@]}"
