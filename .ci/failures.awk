# What the failing tests of `go test -v` said, and nothing else.
/^=== / { test = $3; next }
/^ *--- (PASS|SKIP|FAIL):/ {
	if ($2 == "FAIL:") printf "%s%s\n", said[$3], $0
	delete said[$3]
	test = $3
	next
}
/^(FAIL|panic:)/ { print; if ($1 == "panic:") panics = 1; next }
panics && lines++ < 100 { print; next }
length(said[test]) < 4000 { said[test] = said[test] substr($0, 1, 1000) "\n" }
