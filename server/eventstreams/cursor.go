package eventstreams

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"
)

// cursors makes the ids of mixed streams: one AES block of the event's id and a check over whose it is. The id itself would tell everybody
// how much happens in the whole installation. A block that nobody tampered with has the right check; one of another listener, or of another life of
// the database, hasn't.
type cursors struct{ block cipher.Block }

func newCursors(key []byte) (cursors, error) {
	block, err := aes.NewCipher(key)
	return cursors{block}, err
}

func check(epoch, listener string) []byte {
	sum := sha256.Sum256([]byte(epoch + "\x00" + listener))
	return sum[:8]
}

func (c cursors) seal(epoch, listener string, id int64) string {
	b := binary.BigEndian.AppendUint64(check(epoch, listener), uint64(id))
	c.block.Encrypt(b, b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func (c cursors) open(epoch, listener, cursor string) (id int64, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) != aes.BlockSize {
		return 0, false
	}
	c.block.Decrypt(b, b)
	id = int64(binary.BigEndian.Uint64(b[8:]))
	return id, id >= 0 && string(b[:8]) == string(check(epoch, listener))
}

// parseRev reads the place in a group's stream.
func parseRev(cursor string) (int64, bool) {
	rev, err := strconv.ParseInt(cursor, 10, 64)
	return rev, err == nil && rev >= 0 && strconv.FormatInt(rev, 10) == cursor
}
