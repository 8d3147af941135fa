// Package record keeps evidence: one line of JSON for every decision, in
// hash-chained segment files of one directory.
//
// # The promise
//
// A nil from [Writer.Add] means that the record is in the writer's memory and
// will be written in the order of its sequence number.
//
//   - Killed process (kill -9): at most the batch that was not yet written is
//     lost, which is what was added in the last Options.FlushEvery (50 ms),
//     and never more than Options.Buffer bytes (4 MiB).
//   - Power cut: at most Options.SyncRecords records (65,536) are lost; a disk
//     sync begins at most Options.SyncEvery (1 s) after a record was added.
//   - What [Writer.Sync] acknowledged is on the disk.
//   - The chain is never torn or reordered. What a crash left half written is
//     cut off by the next [Open] into a file of its own, SEGMENT.torn, and the
//     chain says how much that was. Damage before that is never repaired,
//     skipped or overwritten: Open refuses the directory.
//   - Records are never dropped in silence. When the disk does not follow, Add
//     waits up to Options.Wait and then fails, and the gate refuses the call.
//
// # The chain
//
// Records are written in batches, and each batch ends with a seal: a line that
// holds the SHA-256 of the seal before it, of the batch's bytes and of the
// seal's own fields. A segment opens with a header that repeats the last hash
// of the segment before. The file "head" names the last seal that was synced,
// so that a cut end shows as well.
//
// The chain shows every later change to anyone who trusts head. It has no key:
// someone who can write the directory can also write a new chain and a new
// head. Who fears that keeps Report.Hash somewhere else from time to time.
//
// # Secrets
//
// A record has no place for header values and bodies. Query strings are kept
// only with Options.Queries.
package record

import (
	"encoding/json"
	"fmt"
	"time"

	"merlon"
)

// Record is one line of evidence: what was decided about a call, when, where
// and why. Times are unix nanoseconds.
type Record struct {
	Seq        uint64         `json:"seq"` // position in the chain, from 1; set by the writer
	Time       int64          `json:"-"`   // when the call came in; "time" in RFC 3339 in the file
	ID         string         `json:"id,omitzero"`
	Place      string         `json:"place,omitzero"` // where it was decided, see merlon.Place
	At         string         `json:"at,omitzero"`    // the side of the gate: edge, in or out; exec for a permission that merlon exec was given
	Caller     string         `json:"caller,omitzero"`
	CallerKind string         `json:"callerKind,omitzero"`
	Subject    string         `json:"subject,omitzero"`
	Client     string         `json:"client,omitzero"` // address of the client as the edge saw it
	Service    string         `json:"service,omitzero"`
	Operation  string         `json:"operation,omitzero"`
	Method     string         `json:"method,omitzero"`
	Host       string         `json:"host,omitzero"`
	Path       string         `json:"path,omitzero"`
	Query      string         `json:"query,omitzero"`  // kept only with Options.Queries
	Status     int            `json:"status,omitzero"` // of the answer; 0 when there was none
	GRPC       string         `json:"grpc,omitzero"`   // status of a gRPC call, such as PERMISSION_DENIED
	Verdict    merlon.Verdict `json:"verdict"`
	Detail     string         `json:"detail,omitzero"`   // the cause, for operators; never a secret
	Upstream   string         `json:"upstream,omitzero"` // address the call was sent to
	Intent     string         `json:"intent,omitzero"`   // hash of the intent that decided
	Duration   int64          `json:"duration,omitzero"` // nanoseconds
	BytesIn    int64          `json:"bytesIn,omitzero"`  // body of the request
	BytesOut   int64          `json:"bytesOut,omitzero"` // body of the answer
	Trace      string         `json:"trace,omitzero"`    // id of the trace that the call belongs to (W3C Trace Context)
}

// maxField bounds one string of a record in bytes. What is longer is cut, and
// ends with how much is missing.
const maxField = 8 << 10

// MarshalJSON gives the line that is in the file, without the line feed.
func (r Record) MarshalJSON() ([]byte, error) {
	var e encoder
	line := e.appendRecord(nil, r.Seq, &r, true)
	return line[:len(line)-1], nil
}

// UnmarshalJSON reads a line.
func (r *Record) UnmarshalJSON(data []byte) error {
	type plain Record
	*r = Record{}
	aux := struct {
		*plain
		Time time.Time `json:"time"`
	}{plain: (*plain)(r)}
	if err := json.Unmarshal(data, &aux); err != nil {
		return err
	}
	r.Time = aux.Time.UnixNano()
	return nil
}

// Broken is the first place where a chain is not what was written.
type Broken struct {
	File string // name in the directory
	Line int    // from 1; 0 when the file as a whole is meant
	What string
	Hint string // what to do
}

// Error gives file, line and what is wrong.
func (b *Broken) Error() string {
	if b.Line == 0 {
		return b.File + ": " + b.What
	}
	return fmt.Sprintf("%s:%d: %s", b.File, b.Line, b.What)
}
