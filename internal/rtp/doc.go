// Package rtp reads what receivers and cameras need of RTP (RFC 3550): it recognises datagrams, extends their sequence numbers to 64
// bits, counts what is missing, and takes MPEG transport streams out of and into RTP (RFC 2250). It never changes a
// datagram that passes through, and knows no sockets.
package rtp
