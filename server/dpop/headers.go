package dpop

import (
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// maxHeaders is how many headers are remembered, and maxHeader the longest one, in bytes.
	maxHeaders = 10_000
	maxHeader  = 512
)

// headers remembers the headers of proofs that were right. A client sends the same with each proof, since it holds the key and nothing else.
type headers struct {
	mu    sync.Mutex
	known *simplelru.LRU[string, Key]
}

func newHeaders() *headers {
	known, err := simplelru.NewLRU[string, Key](maxHeaders, nil)
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	return &headers{known: known}
}

// read gives the key of a header, and whether it was known.
func (h *headers) read(segment string) (Key, bool, error) {
	h.mu.Lock()
	key, ok := h.known.Get(segment)
	h.mu.Unlock()
	if ok {
		return key, true, nil
	}
	key, err := parseHeader(segment)
	return key, false, err
}

// keep remembers a header whose signature was right: a stranger's guesses push nobody out.
func (h *headers) keep(segment string, key Key) {
	if len(segment) > maxHeader {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known.Add(strings.Clone(segment), key)
}
