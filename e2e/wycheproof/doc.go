// Package wycheproof holds the primitives that groupcast trusts against the test vectors of Project Wycheproof: Ed25519, ECDSA on P-256 and RSA
// signatures as the tokens use them, the reading of JWKs, and AES-SIV. It has tests only. What it tests is other people's code and the
// thin layer of ours around it, so a failure most likely means that an update of a library must not be taken.
package wycheproof
