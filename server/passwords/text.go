package passwords

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/groupcast/groupcast/models"
)

const (
	// MinLength is the least length of a new password, in characters. NIST SP 800-63B-4 §3.1.1.2 asks for 15 where the password is all there
	// is and allows 8 beside a second factor; with delays and argon2id 12 is what people still accept. There are no rules of composition.
	MinLength = 12
	// MaxLength is the greatest, in characters.
	MaxLength = 128
	// maxBytes bounds what is looked at at all: four bytes for each character, and as much again for what normalising takes away.
	maxBytes = 2 * 4 * MaxLength
)

// prepare brings a typed password to the form that is hashed, so that the same characters from another keyboard give the same bytes: NFC, and
// every kind of space is a plain one, as RFC 8265 §4.2 (OpaqueString) has it. It is NFC and not NFKC because NFKC would make different
// passwords equal (ﬁ and fi, ² and 2), which weakens them and gives nobody anything. What has no stable meaning is refused: broken UTF-8, control
// characters, private and unassigned code points. Other than RFC 8265 it takes joiners, since emoji are made with them.
func prepare(typed string) (string, bool) {
	if len(typed) > maxBytes || !utf8.ValidString(typed) {
		return "", false
	}
	ok := true
	mapped := strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.Zs, r):
			return ' '
		case !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Cf):
			ok = false
		}
		return r
	}, typed)
	return norm.NFC.String(mapped), ok
}

// check refuses what can't become a password.
func check(typed string) (string, error) {
	prepared, ok := prepare(typed)
	length := utf8.RuneCountInString(prepared)
	switch {
	case len(typed) > maxBytes || length > MaxLength:
		return "", models.Errorf(models.CodeBadRequest, "The password is longer than %d characters. Choose a shorter one.", MaxLength)
	case !ok:
		return "", models.Errorf(models.CodeBadRequest, "The password has a character that can't be typed everywhere, such as a line break. Use letters, digits, punctuation, symbols and spaces.")
	case length < MinLength:
		return "", models.Errorf(models.CodeBadRequest, "The password is shorter than %d characters. Choose a longer one; a few words will do.", MinLength)
	}
	return prepared, nil
}
