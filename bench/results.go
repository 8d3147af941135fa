package main

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cell is one proxy in one scenario.
type cell struct{ scenario, proxy string }

// results are measurements, of a cell in each round at most one.
type results map[cell]map[int]*measurement

func (r results) add(c cell, round int, m *measurement) {
	if r[c] == nil {
		r[c] = map[int]*measurement{}
	}
	r[c][round] = m
}

func (r results) has(scenario string) bool {
	for c := range r {
		if c.scenario == scenario {
			return true
		}
	}
	return false
}

func (r results) forget(scenario string) {
	for c := range r {
		if c.scenario == scenario {
			delete(r, c)
		}
	}
}

// columns of the file of results. Times are in microseconds; memory is in KiB,
// at the end, or with each number of idle connections.
var columns = []string{"scenario", "proxy", "round", "requests", "elapsed", "processor", "p50", "p99", "memory"}

// extent is how many rounds there are and how long a measurement is.
func (r results) extent() (rounds int, each time.Duration) {
	var times []float64
	for _, all := range r {
		for round, m := range all {
			rounds = max(rounds, round+1)
			if m.elapsed > 0 {
				times = append(times, m.elapsed.Seconds())
			}
		}
	}
	return rounds, time.Duration(median(times) * float64(time.Second)).Round(100 * time.Millisecond)
}

// save replaces the file of results.
func (r results) save(file string) error {
	var lines [][]string
	us := func(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }
	for c, rounds := range r {
		for round, m := range rounds {
			var memory []string
			for _, n := range m.memory {
				memory = append(memory, strconv.FormatInt(n>>10, 10))
			}
			lines = append(lines, []string{c.scenario, c.proxy, strconv.Itoa(round + 1), strconv.Itoa(m.requests),
				us(m.elapsed), us(m.cpu), us(m.p50), us(m.p99), strings.Join(memory, " ")})
		}
	}
	slices.SortFunc(lines, slices.Compare)
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.Comma = '\t'
	if err := errors.Join(w.Write(columns), w.WriteAll(lines)); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// readResults reads what save wrote; no file is no results.
func readResults(file string) (results, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return results{}, nil
	}
	if err != nil {
		return nil, err
	}
	rd := csv.NewReader(bytes.NewReader(text))
	rd.Comma, rd.FieldsPerRecord = '\t', len(columns)
	lines, err := rd.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(lines) == 0 || !slices.Equal(lines[0], columns) {
		return nil, fmt.Errorf("%s: the columns are not %q", file, columns)
	}
	r := results{}
	for i, line := range lines[1:] {
		var failed error
		number := func(text string) int64 {
			n, err := strconv.ParseInt(text, 10, 64)
			failed = errors.Join(failed, err)
			return n
		}
		us := func(text string) time.Duration { return time.Duration(number(text)) * time.Microsecond }
		m := &measurement{result: result{requests: int(number(line[3])), elapsed: us(line[4]), p50: us(line[6]), p99: us(line[7])}, cpu: us(line[5])}
		for n := range strings.FieldsSeq(line[8]) {
			m.memory = append(m.memory, number(n)<<10)
		}
		r.add(cell{line[0], line[1]}, int(number(line[2]))-1, m)
		if failed != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+2, failed)
		}
	}
	return r, nil
}
