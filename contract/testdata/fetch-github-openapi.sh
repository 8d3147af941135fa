#!/bin/sh
# Installs GitHub's published REST contract into DIR and prints the path of its
# file, for TestGitHub:
#
#	export MERLON_GITHUB_OPENAPI=$(sh contract/testdata/fetch-github-openapi.sh DIR)
set -eu
dir=${1:?usage: $0 DIR}
version=23.0.2
npm install --no-save --no-audit --no-fund --ignore-scripts --silent --prefix "$dir" "@octokit/openapi@$version" >&2
file=$dir/node_modules/@octokit/openapi/generated/api.github.com.json
test -s "$file"
printf '%s\n' "$file"
