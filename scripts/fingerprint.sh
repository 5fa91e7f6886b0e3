#!/usr/bin/env bash
# Prints one digest over the names and contents of the files under a directory.
set -euo pipefail
find "$1" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
