// Package exactjson tells which JSON the standard library's decoder reads exactly as it stands. That decoder is several times faster than
// go-jose's, but takes "SCOPE" for scope and the last of two members for both; what is signed must have one meaning only.
//
// It decodes nothing: whoever finds an object that isn't plain refuses it, or gives it to go-jose's decoder.
package exactjson

import "bytes"

// members is how many names are compared with each other; an object with more isn't plain.
const members = 32

// Plain tells whether the names of all members, at whatever depth, are different, and without capitals, escapes and what isn't ASCII. Whether
// it is JSON at all is for the decoder to say.
func Plain(object []byte) bool {
	var seen [members][]byte
	n := 0
	for i := 0; i < len(object); i++ {
		if object[i] != '"' {
			continue
		}
		begin, odd := i+1, false
		for i++; i < len(object) && object[i] != '"'; i++ {
			c := object[i]
			odd = odd || c == '\\' || c-'A' < 26 || c > '~'
			if c == '\\' {
				i++
			}
		}
		if i >= len(object) {
			return false
		}
		if !colonFollows(object[i+1:]) {
			continue // a value
		}
		name := object[begin:i]
		if odd || n == len(seen) {
			return false
		}
		for _, other := range seen[:n] {
			if bytes.Equal(other, name) {
				return false
			}
		}
		seen[n] = name
		n++
	}
	return true
}

func colonFollows(rest []byte) bool {
	for _, c := range rest {
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			return c == ':'
		}
	}
	return false
}
