package dpop

import (
	"errors"
	"net/url"
	"strings"
)

var errTarget = errors.New("not an absolute http or https URI without user information and dot segments")

// normalise brings an absolute URI to the one form that RFC 3986 §6.2.2 and §6.2.3 give it, without query and fragment, so that two
// spellings of the same target compare equal (RFC 9449 §4.3). Dot segments, which no client leaves in a request, are refused.
func normalise(uri string) (string, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", errTarget
	}
	scheme := strings.ToLower(u.Scheme)
	host := strings.ToLower(u.Host)
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	default:
		return "", errTarget
	}
	host = strings.TrimSuffix(host, ":")
	p, ok := normalPath(u.EscapedPath())
	if !ok || host == "" || u.User != nil || u.Opaque != "" {
		return "", errTarget
	}
	return scheme + "://" + host + p, nil
}

// normalPath writes percent-encodings in one way: capital digits, and none for unreserved characters.
func normalPath(escaped string) (string, bool) {
	if escaped == "" {
		return "/", true
	}
	var b strings.Builder
	for i := 0; i < len(escaped); i++ {
		if escaped[i] != '%' || i+2 >= len(escaped) {
			b.WriteByte(escaped[i])
			continue
		}
		triplet := strings.ToUpper(escaped[i : i+3])
		if c, err := url.PathUnescape(triplet); err == nil && unreserved(c[0]) {
			triplet = c
		}
		b.WriteString(triplet)
		i += 2
	}
	p := b.String()
	for segment := range strings.SplitSeq(p, "/") {
		if segment == "." || segment == ".." {
			return "", false
		}
	}
	return p, true
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
