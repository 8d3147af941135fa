//go:build !race

package http2_test

const poolLosses = 0
