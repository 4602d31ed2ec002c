package models

import (
	"encoding/base64"
	"strings"
)

// Page asks for one page of a list.
type Page struct {
	// Size is the greatest number of entries, 1 to 500; 0 means 100.
	Size int
	// Token is the token that came with the page before; empty asks for the first page.
	Token string
}

const (
	defaultPageSize = 100
	maxPageSize     = 500
	pageTokenForm   = "1." // the form of what the token hides; another form gets another mark
)

// Limit is the number of entries to read.
func (p Page) Limit() int {
	if p.Size <= 0 {
		return defaultPageSize
	}
	return min(p.Size, maxPageSize)
}

// After is the id of the last entry of the page before, empty for the first page. A token that PageToken didn't make is
// refused with CodeBadRequest.
func (p Page) After() (string, error) {
	if p.Token == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(p.Token)
	id, ok := strings.CutPrefix(string(b), pageTokenForm)
	if err != nil || !ok || id == "" {
		return "", Errorf(CodeBadRequest, "This pageToken is not one of ours. Leave it out to start with the first page.")
	}
	return id, nil
}

// PageToken makes the token for the page after the entry with this id. Lists are sorted by id, which is the order of creation.
func PageToken(lastID string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(pageTokenForm + lastID))
}
