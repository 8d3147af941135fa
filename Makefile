# The commands of this repository. `make` lists them.
export CGO_ENABLED = 0
FUZZTIME ?= 10s

.PHONY: help build test race fuzz lint bench soak shop try golden
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 10

build: ## bin/merlon and bin/merlon-gate, static
	go build -trimpath -ldflags '-s -w' -o bin/ ./cmd/...

test: ## all tests
	go test ./...

race: export CGO_ENABLED = 1
race: ## all tests under the race detector, in random order
	go test -race -shuffle=on ./...

fuzz: ## every fuzz target, FUZZTIME each
	@for dir in $$(go list -f '{{.Dir}}' ./...); do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go 2>/dev/null | cut -c6-); do \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$dir || exit 1; \
		done; \
	done

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.1 ./...

bench: ## measure beside other proxies, and write docs/benchmarks.md
	go run ./bench -write

soak: ## upgrade gates under load for five minutes, and rotate certificates for ten
	go test -count=1 -timeout 15m -v -run TestSoak ./cmd/merlon-gate -soak 5m
	go test -count=1 -timeout 25m -v -run TestDrill ./cmd/merlon-gate -drill 10m

shop: ## run the example
	go run ./cmd/merlon up examples/shop

try: ## call the running example in every way, and check the answers
	./examples/shop/try.sh

golden: ## write what tests and documents expect, to be read in the diff
	go test ./cmd/merlon -update
	go test ./intent -update
