#!/usr/bin/env bash
# Tries what the shop's intent allows and what it does not, against a running
# system:
#
#   merlon up examples/shop          # in one terminal
#   examples/shop/try.sh             # in another
#
# usage: try.sh [DIR]. DIR is the intent's directory, by default the one of this
# script; MERLON is the command to use, by default "merlon" or, without it,
# "go run ./cmd/merlon" in this repository. Needs curl, and Go for the tokens.
# It ends with 0 only if every line says ok.
set -u
unset http_proxy HTTP_PROXY https_proxy HTTPS_PROXY all_proxy ALL_PROXY

here=$(cd "$(dirname "$0")" && pwd)
dir=$(cd "${1:-$here}" && pwd) || exit 1
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

if [ -z "${MERLON:-}" ]; then
  if command -v merlon >"$tmp/which"; then
    MERLON=merlon
  else
    (cd "$here/../.." && go build -o "$tmp/merlon" ./cmd/merlon) || exit 1
    MERLON=$tmp/merlon
  fi
fi

# Where things run: the system says it itself.
"$MERLON" status --json "$dir" >"$tmp/status" || {
  echo "no healthy system runs for $dir; start it with: $MERLON up $dir" >&2
  exit 1
}
at() { # at PLACE KEY: a gate's address
  awk -v place="\"$1\"," -v key="\"$2\":" '
    $1 == "\"place\":" && $0 ~ /^      "place"/ { sub(/^ *"place": /, ""); here = ($0 == place) }
    $1 == key && here { gsub(/[",]/, "", $2); print $2; exit }' "$tmp/status"
}
gateway=$(at gateway address)
port=${gateway##*:}
url=https://localhost:$port
cert=$dir/.merlon/gateway.pem
web=$(at 'gate of web' outbound)
payments=$(at 'gate of payments' address)

(cd "$dir" && go build -o "$tmp/token" ./token) || exit 1
token() { "$tmp/token" -subject "try-$$@shop.example" "$@"; }

failed=0
lastid=
line() { # line GOT WANT WHAT
  local mark=ok
  [ "$1" = "$2" ] || { mark=FAIL failed=1; }
  printf '%-4s  %-32s %s\n' "$mark" "$1" "$3"
  [ $mark = ok ] || printf '      %-32s was wanted\n' "$2"
}

# try WHAT WANT ARGUMENTS-OF-CURL...: WANT is "STATUS" of an allowed call, or
# "STATUS REASON" of a refusal.
as=() # the command that runs curl, if any
try() {
  local what=$1 want=$2 status reason
  shift 2
  status=$(${as[@]+"${as[@]}"} curl -sS --max-time 20 --noproxy '' -o "$tmp/body" -D "$tmp/head" -w '%{http_code}' "$@" 2>"$tmp/error") || status="curl:$?"
  reason=$(awk -F': ' 'tolower($1) == "merlon-reason" { sub(/\r/, "", $2); print $2 }' "$tmp/head")
  lastid=$(awk -F': ' 'tolower($1) == "merlon-request-id" { sub(/\r/, "", $2); print $2 }' "$tmp/head")
  line "$status${reason:+ $reason}" "$want" "$what"
}
edge() { # edge WHAT WANT PATH ARGUMENTS-OF-CURL...
  local what=$1 want=$2 path=$3
  shift 3
  try "$what" "$want" --cacert "$cert" "$@" "$url$path"
}
inside() { # inside SERVICE WHAT WANT ARGUMENTS-OF-CURL...: as a part of the service
  as=("$MERLON" exec "$1" "$dir" --)
  shift
  try "$@"
  as=()
}
bearer() { echo "Authorization: Bearer $(token "$@")"; }
json='Content-Type: application/json'

echo "From outside, through the gateway at $url"
edge 'anyone lists products' 200 /products
edge 'anyone looks at one' 200 /products/anvil
edge 'anyone buys it: web calls orders, orders calls catalog and payments' 201 /checkout \
  -H "$json" -d '{"sku":"anvil","quantity":1,"card":"4111111111111111"}'
edge 'staff with the role support lists orders' 200 /orders -H "$(bearer staff support)"
edge 'nobody in particular does not' '401 no_rule' /orders
denied=$lastid
edge 'staff with another role does not either' '403 condition' /orders -H "$(bearer staff warehouse)"
edge 'a token that has expired' '401 invalid_token' /orders -H "$(bearer -expired staff support)"
edge 'a token for somebody else' '401 invalid_token' /orders -H "$(bearer -audience other staff support)"
edge 'a token of nonsense, even where none is needed' '401 invalid_token' /products -H 'Authorization: Bearer nonsense'
edge 'an operation that no contract has' '404 no_operation' /no/such/thing
edge 'a method that the operation does not have' '404 no_operation' /products -X DELETE
edge 'a host that the gateway does not serve' '404 no_service' /products -H 'Host: other.example'
edge 'what an owner opened and a guardrail closes' '403 guardrail' /payments/status
edge 'a forged caller, of whom nothing is left' '401 no_rule' /orders -H 'Merlon-Caller: staff' -H 'X-Forwarded-User: root'
edge 'a forged caller in disguise' '400 field_name_disguised' /orders -H 'Merlon_Caller: staff'
edge 'dots in the path, encoded' '400 path_dot_segment' /products/%2e%2e/orders --path-as-is
edge 'a slash in the path, encoded' '400 path_encoded_slash' /products%2fanvil --path-as-is
edge 'a NUL in the path' '400 path_control' /products/%00 --path-as-is
edge 'two lengths for one body, as smugglers send' '400 length_and_transfer_encoding' /checkout \
  --http1.1 -H 'Content-Length: 5' -H 'Transfer-Encoding: chunked' -d hello
head -c 2097152 /dev/zero >"$tmp/large"
edge 'a body beyond the bound' '413 body_too_large' /checkout -H "$json" -H 'Expect:' --data-binary "@$tmp/large"
edge 'a change of protocol' '501 upgrade_not_spoken' /products --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket'
support=$(bearer staff support) # of one person: four calls are left of the burst of five
for _ in 1 2 3 4 5 6; do
  curl -sS -o "$tmp/body" --cacert "$cert" -H "$support" "$url/orders" || failed=1
done
edge 'one call too many of a person in a minute' '429 rate_limited' /orders -H "$support"

echo
echo "Between services, through their gates"
inside web 'web searches the catalog' 200 http://catalog/products
inside web 'beyond a bound that is being tried out: it passes, and the record says so' 200 'http://catalog/products?limit=50'
inside orders 'orders looks at a product' 200 http://catalog/products/anvil
inside orders 'orders searches, which it may not' '404 no_operation' http://catalog/products
inside web 'web charges a card, which it may not' '404 no_service' -X POST -H "$json" -d '{}' http://payments/charges
stranger='403 not_own_workload'
[ "$(at 'gate of web' isolated)" = true ] && stranger=curl:7 # merlon up --isolate: there is no way there
try "a stranger on this host borrows web's gate" "$stranger" -x "http://$web" http://catalog/products
edge 'web asks the ledger by mistake: its gate knows no ledger' 404 /balance
grep -q no_service "$tmp/body" || line 'another answer' no_service 'the gate says why'
try 'straight to the gate of payments, without an identity' curl:56 -k --http1.1 -X POST "https://$payments/charges"

echo
echo "Questions"
"$MERLON" why "$denied" "$dir" >"$tmp/out" 2>&1
line "exit $?" 'exit 0' "merlon why $denied"
grep -q 'orders/orders.merlon.yaml:' "$tmp/out"
line "exit $?" 'exit 0' 'its answer names the sentence to change'
"$MERLON" record verify "$dir" >"$tmp/out" 2>&1
line "exit $?" 'exit 0' 'merlon record verify'
"$MERLON" status "$dir" >"$tmp/out" 2>&1
line "exit $?" 'exit 0' 'merlon status'

exit $failed
