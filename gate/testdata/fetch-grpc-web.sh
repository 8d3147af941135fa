#!/bin/sh
# Installs two clients of gRPC-Web into DIR and prints the directory of their
# packages, for TestRPCWebClients:
#
#	export MERLON_GRPC_WEB=$(sh gate/testdata/fetch-grpc-web.sh DIR)
set -eu
dir=${1:?usage: $0 DIR}
npm install --no-save --no-audit --no-fund --ignore-scripts --silent --prefix "$dir" \
	grpc-web@2.0.2 xhr2@0.2.1 @connectrpc/connect@2.1.0 @connectrpc/connect-node@2.1.0 @bufbuild/protobuf@2.9.0 >&2
test -s "$dir/node_modules/grpc-web/package.json"
printf '%s\n' "$dir/node_modules"
