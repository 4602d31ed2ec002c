// Package passwords hashes and checks the passwords of account holders with argon2id (RFC 9106), and says how long a caller has to wait
// before the next try. It stores nothing and knows nothing of accounts: the caller keeps the encoded hash.
//
// Hashing is dear on purpose, so at most a fixed number run at once, whatever number of logins arrive. A login for an unknown name costs the
// same work as one for a known name, so that names can't be told apart.
package passwords
