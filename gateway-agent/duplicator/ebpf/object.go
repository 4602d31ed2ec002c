package ebpf

import (
	"bytes"
	"compress/gzip"
	"io"
)

// unpacked gives an object as clang made it; what is damaged fails as an object.
func unpacked(compressed []byte) io.ReaderAt {
	object := []byte(nil)
	if z, err := gzip.NewReader(bytes.NewReader(compressed)); err == nil {
		object, _ = io.ReadAll(z)
	}
	return bytes.NewReader(object)
}
