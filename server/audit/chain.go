package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/groupcast/groupcast/models"
)

// domain keeps these hashes apart from all others, and changes with the encoding.
const domain = "groupcast audit row v1"

// encode is the canonical form of a row: every field with its length before it, so that no two rows share one.
func encode(a models.AuditRow) []byte {
	var source string
	if a.Source.IsValid() {
		source = a.Source.String()
	}
	b := appendText(nil, domain)
	b = binary.BigEndian.AppendUint64(b, uint64(a.Seq))
	b = binary.BigEndian.AppendUint64(b, uint64(a.At.UnixMilli()))
	for _, field := range []string{string(a.ID), a.Actor, string(a.AccountID), a.Action, a.Object, a.Result, a.Reason, source, a.RequestID} {
		b = appendText(b, field)
	}
	if a.Count != 1 { // a row that stands for one has the encoding from before there was a count
		b = binary.BigEndian.AppendUint64(b, uint64(a.Count))
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// next is the chain's hash at a row: over the hash before it and the row with its place.
func next(before string, a models.AuditRow) string {
	h := sha256.New()
	h.Write(appendText(nil, before))
	h.Write(encode(a))
	return hex.EncodeToString(h.Sum(nil))
}
