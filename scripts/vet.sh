#!/usr/bin/env bash
# The bans of the house that neither go vet nor staticcheck knows. Each says
# what to do instead. A line that must break one ends in `// vet:allow <why>`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failed=0

# ban REASON PATTERN PATHSPEC...: no tracked file of the pathspecs may match.
ban() {
  local reason=$1 pattern=$2
  shift 2
  local hits
  hits=$(git grep -nE "$pattern" -- "$@" ':!*.pb.go' | grep -vE 'vet:allow [^ ]' || true)
  if [[ -n "$hits" ]]; then
    printf '%s\n%s\n\n' "vet: $reason" "$hits" >&2
    failed=1
  fi
}

go=('*.go')
production=('*.go' ':!*_test.go' ':!test/' ':!bench/')
libraries=("${production[@]}" ':!cmd/' ':!examples/')
tests=('*_test.go')

ban 'no time.After: it cannot be stopped; use a timer or a context' \
  '\btime\.After\(' "${production[@]}"
ban 'libraries do not print: return the text, or write to an io.Writer that was handed in' \
  '\bfmt\.Print(f|ln)?\(|\bos\.Stdout\b|^\s*print(ln)?\(' "${libraries[@]}"
ban 'use log/slog with a logger that was handed in' \
  '"log"$|\bslog\.(Debug|Info|Warn|Error)(Context)?\(' "${libraries[@]}"
ban 'return an error; do not panic' \
  '(^|[^.[:alnum:]_"`])panic\(' "${libraries[@]}"
ban 'no init registries: use an ordinary constructor' \
  '^func init\(\)' "${go[@]}"
ban 'no os.Exit outside cmd' \
  '\bos\.Exit\(' "${libraries[@]}"
ban 'log messages are constant: put what varies into attributes' \
  '\.(Debug|Info|Warn|Error)\((fmt\.Sprintf|"[^"]*" *\+)' "${libraries[@]}"
ban 'tests use t.Context(), or a context with a deadline' \
  'context\.(Background|TODO)\(\)[,)]*$' "${tests[@]}"
ban 'xDS packages are imported under a name with their version, such as corev3' \
  '^\s*"github.com/envoyproxy/go-control-plane/envoy/(config|extensions|service|type|data|admin)/[^"]+/v3"' "${go[@]}"
ban 'finish it, or file an issue and leave no mark in the code' \
  '\b(TODO|FIXME|XXX)\b' "${go[@]}" '*.proto' Makefile
ban 'no addresses of package registries and no lock files that hold them' \
  '"resolved": *"https?://|--(index-url|registry|proxy)[= ]+https?://|GOPROXY=https?://' ':!*.sum' ':!scripts/vet.sh'

if ((failed)); then
  exit 1
fi
echo "vet: the house rules hold"
