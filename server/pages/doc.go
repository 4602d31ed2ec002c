// Package pages is what people with a browser see: log in, approve a device (RFC 8628 §3.3), and look at the account and end what should end.
// The pages are made here, whole, without a script: forms and one style sheet.
//
// A page does nothing by itself: it asks the domain services that the operations of the contract ask, and server/httpapi guards it by the
// same rules, limits and schemas. What changes something is a POST, which answers with a redirect; a GET changes nothing and takes no code.
package pages
