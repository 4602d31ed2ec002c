package models

import (
	"encoding/base64"
	"strings"
)

// List names a list that is read in pages. It is part of every token, so that the token of one list is none of another.
type List string

// The lists.
const (
	ListAccounts      List = "accounts"
	ListAudit         List = "audit"
	ListCredentials   List = "credentials"
	ListDevices       List = "devices"
	ListGroups        List = "groups"
	ListLinks         List = "links"
	ListPremises      List = "premises"
	ListRegistrations List = "registrations"
	ListRelays        List = "relays"
	ListWebhooks      List = "webhooks"
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
	pageTokenForm   = "2." // the form of what the token hides; another form gets another mark
)

// Limit is the number of entries to read.
func (p Page) Limit() int {
	if p.Size <= 0 {
		return defaultPageSize
	}
	return min(p.Size, maxPageSize)
}

// After is the id of the last entry of the page before, empty for the first page. A token that Cut didn't make for this list is refused
// with CodeBadRequest.
func (p Page) After(l List) (string, error) {
	if p.Token == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(p.Token)
	said, ok := strings.CutPrefix(string(b), pageTokenForm)
	list, id, _ := strings.Cut(said, ".")
	switch {
	case err != nil || !ok || id == "":
		return "", Errorf(CodeBadRequest, "This pageToken is not one of ours. Leave it out to start with the first page.")
	case List(list) != l:
		return "", Errorf(CodeBadRequest, "This pageToken is of another list. Leave it out to start with the first page.")
	}
	return id, nil
}

// Cut takes the entry that is too many for the page, Limit()+1 of which were read, and makes the token of the next page; without such an
// entry there is none, and the token is empty. The list is sorted by what id gives.
func Cut[T any](all []T, p Page, l List, id func(T) string) ([]T, string) {
	limit := p.Limit()
	if len(all) <= limit {
		return all, ""
	}
	all = all[:limit]
	return all, base64.RawURLEncoding.EncodeToString([]byte(pageTokenForm + string(l) + "." + id(all[limit-1])))
}
