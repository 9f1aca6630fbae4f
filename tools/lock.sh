#!/usr/bin/env bash
# Resolves the development environment into requirements/dev.lock, a constraints file for pip:
# `make install PIP_CONSTRAINT=requirements/dev.lock` installs exactly these versions. Usage: tools/lock.sh REQUIREMENTS
set -euo pipefail
requirements="${1:?usage: tools/lock.sh REQUIREMENTS}"
cd "$(dirname "$0")/.."
mkdir -p requirements
# PyTorch is left out: make installs the build that fits the machine, and the default one brings gigabytes of CUDA.
uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate \
    --no-emit-package torch --no-emit-package triton --custom-compile-command "make lock" \
    --output-file requirements/dev.lock pyproject.toml "$requirements"
