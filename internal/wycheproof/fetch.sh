#!/bin/sh
# Downloads the test vectors of Wycheproof, a Go module, and prints the directory
# of its files:
#
#	export MERLON_WYCHEPROOF=$(sh internal/wycheproof/fetch.sh)
#
# The module embeds 100 MB of vectors and cannot be linked into tests for that.
set -eu
version=v0.0.0-20260902155932-3fa63dd0344a
sum=h1:pNbL2nztRsWfW/ispAwsvcDFxs9Id38uIsR2/Up5G2c=
cd "${TMPDIR:-/tmp}"
got=$(GOFLAGS=-mod=mod go mod download -json "github.com/c2sp/wycheproof@$version")
case $got in
*"\"Sum\": \"$sum\""*) ;;
*) echo "$0: github.com/c2sp/wycheproof@$version is not what it was: $got" >&2; exit 1 ;;
esac
dir=$(printf '%s\n' "$got" | sed -n 's/^.*"Dir": "\(.*\)".*$/\1/p')/testvectors_v1
test -s "$dir/json_web_signature_test.json"
printf '%s\n' "$dir"
