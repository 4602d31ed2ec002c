package models

import "time"

// User is somebody who logs in and acts for an account.
type User struct {
	ID        string
	AccountID AccountID
	// Name is what the user logs in with, in lower case.
	Name string
	// PasswordHash is argon2id in PHC string format.
	PasswordHash string
	// NotBefore ends every token that was issued earlier.
	NotBefore time.Time
	CreatedAt time.Time
}

// NewUserID draws a new user's id.
func NewUserID() string { return newOpaque("u_") }

// Identity is whom a user is at an external issuer.
type Identity struct {
	ID string
	// Issuer and Subject are the iss and sub of its tokens, letter by letter.
	Issuer, Subject string
	UserID          string
	CreatedAt       time.Time
}

// NewIdentityID draws a new identity's id.
func NewIdentityID() string { return newOpaque("i_") }

// Session is a browser that a user is logged in with.
type Session struct {
	User User
	// Idle is how long ago it was used, and Confirmed how long ago the password was typed.
	Idle      time.Duration
	Confirmed time.Duration
	// ExpiresIn is how long it lives at most.
	ExpiresIn time.Duration
}
