#!/usr/bin/env bash
# Calls the running shop in every way that its intent knows, and checks each
# answer: its status, and the reason in its body when it is a denial. Start the
# shop first, in another terminal:
#
#     go run ./cmd/merlon up examples/shop
#
# Exits 0 when every answer is as expected. Needs bash, curl and go.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
url=https://localhost:8443
ca=$here/.merlon/gateway.pem
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ ! -e $ca ]] || ! curl -s --cacert "$ca" -o "$work/body" "$url/products"; then
	echo "try.sh: nothing answers at $url" >&2
	echo "hint: start the shop with: go run ./cmd/merlon up examples/shop" >&2
	exit 1
fi

(cd "$here" && go build -o "$work/token" ./token)
# A subject of its own for each run: limits count by subject.
support=$("$work/token" -subject "try-$$@shop.example" staff support)
warehouse=$("$work/token" staff warehouse)
expired=$("$work/token" -expired staff support)
foreign=$("$work/token" -audience bank staff support)
order='{"sku":"lantern","quantity":2,"card":"4242424242424242"}'
failed=0

# expect STATUS REASON ABOUT CURL-ARGUMENTS... makes one call. REASON is - for
# an answer of the service itself.
expect() {
	local status=$1 reason=$2 about=$3 got said
	shift 3
	got=$(curl -s --cacert "$ca" -D "$work/head" -o "$work/body" -w '%{http_code}' "$@") || got="no answer ($?)"
	said=$(sed -n 's/^{"reason":"\([a-z0-9_]*\)".*/\1/p' "$work/body")
	if [[ $got == "$status" && ${said:--} == "$reason" ]]; then
		printf 'ok    %s %-28s %s\n' "$got" "$said" "$about"
		return
	fi
	failed=$((failed + 1))
	printf 'FAIL  %s %-28s %s\n      want %s %s; the answer was: %s\n' "$got" "$said" "$about" "$status" "$reason" "$(head -c 300 "$work/body")"
}

bearer() { printf 'Authorization: Bearer %s' "$1"; }

echo "# allowed"
expect 200 - "anyone lists products (web asks catalog)" "$url/products"
expect 200 - "anyone looks at one" "$url/products/lantern"
expect 201 - "anyone orders (web > orders > catalog, payments > ledger)" -H 'Content-Type: application/json' -d "$order" "$url/checkout"
expect 200 - "staff with the role support reads orders" -H "$(bearer "$support")" "$url/orders"
expect 200 - "a search beyond the bound that is only being tried out (shadow)" "$url/products?limit=100"
expect 200 - "the other host of the gateway" --resolve shop.example:8443:127.0.0.1 https://shop.example:8443/products
expect 200 - "forged headers reach nobody" -H 'Merlon-Caller: staff' -H 'X-Forwarded-For: 10.0.0.1' "$url/products"

echo "# denied: who calls"
expect 401 no_rule "nobody in particular reads orders" "$url/orders"
expect 401 no_rule "a forged identity header is no identity" -H 'Merlon-Caller: staff' "$url/orders"
expect 403 condition "staff with another role reads orders" -H "$(bearer "$warehouse")" "$url/orders"
expect 401 invalid_token "a token that is none" -H "$(bearer nonsense)" "$url/orders"
expect 401 invalid_token "a token that has expired" -H "$(bearer "$expired")" "$url/orders"
expect 401 invalid_token "a token made for somebody else" -H "$(bearer "$foreign")" "$url/orders"
expect 401 invalid_token "a token with one letter changed" -H "$(bearer "${support%?????}AAAAA")" "$url/orders"
expect 401 invalid_token "an invalid token where none is needed: no way down" -H "$(bearer "$expired")" "$url/products"

echo "# denied: what is called"
expect 403 guardrail "payments let anyone in; the guardrail does not" "$url/payments/status"
expect 404 no_operation "an operation that no contract has" "$url/nothing"
expect 404 no_operation "a method that the contract does not have" -X DELETE "$url/products"
expect 404 no_operation "an operation that is not open to the outside" -d "$order" "$url/orders"
expect 404 no_service "a host that the gateway does not have" -H 'Host: bank.example' "$url/products"
expect 404 no_service "web, by mistake, asks ledger: its gate knows of no such service" "$url/balance"

echo "# denied: how it is written"
expect 400 path_dot_segment "a path that two programs read differently" --path-as-is "$url/products/%2e%2e/orders"
expect 400 path_empty_segment "a doubled slash" --path-as-is "$url//orders"
expect 400 field_name_disguised "a forged header in disguise" -H 'Merlon_Caller: staff' "$url/products"
expect 400 length_and_transfer_encoding "two lengths in one request, as smugglers send" -X POST -H 'Content-Length: 5' -H 'Transfer-Encoding: chunked' -d hello "$url/checkout"

echo "# denied: how often"
for _ in {1..10}; do
	curl -s --cacert "$ca" -o "$work/body" -H "$(bearer "$support")" "$url/orders"
done
expect 429 rate_limited "one person, more often than five times at once" -H "$(bearer "$support")" "$url/orders"
grep -qi '^retry-after: *[0-9]' "$work/head" || { echo "FAIL  the answer has no Retry-After"; failed=$((failed + 1)); }
grep -qi '^merlon-request-id: *[a-z0-9]' "$work/head" || { echo "FAIL  the answer has no Merlon-Request-Id"; failed=$((failed + 1)); }
grep -q "\"request\":\"$(sed -n 's/^[Mm]erlon-[Rr]equest-[Ii]d: *\([a-z0-9]*\).*/\1/p' "$work/head")\"" "$work/body" || { echo "FAIL  header and body name different requests"; failed=$((failed + 1)); }

if ((failed > 0)); then
	echo "$failed answers were not as expected"
	exit 1
fi
echo "all answers were as expected"
