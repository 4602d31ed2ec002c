package packet

import (
	"fmt"
	"net/netip"
)

// The IPv4 option that asks for copies: the Stream Identifier of RFC 791 with the copied bit set, so that every fragment has
// it, class 0, number 8. Unlike in RFC 791 its data is the camera's private IPv4 address.
const (
	OptionType   = 0x88
	OptionLength = 6 // type, length, address
)

// Option types without a length byte (RFC 791).
const (
	optionEnd = 0
	optionNOP = 1
)

var (
	errOptionLength = fmt.Errorf("%w: an IPv4 option is longer than the options or shorter than two bytes", ErrMalformed)
	errStreamLength = fmt.Errorf("%w: option 0x88 must be six bytes long", ErrMalformed)
	errStreamTwice  = fmt.Errorf("%w: option 0x88 may occur only once", ErrMalformed)
)

// StreamID reads the options area of an IPv4 header and gives the address in option 0x88. The zero Addr means that the option
// isn't there; a Stream Identifier without the copied bit (0x08) is another option and doesn't count. What follows an
// end-of-options byte is padding and isn't read. Errors wrap ErrMalformed.
func StreamID(options []byte) (netip.Addr, error) {
	var id netip.Addr
	for len(options) > 0 {
		switch options[0] {
		case optionEnd:
			return id, nil
		case optionNOP:
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return netip.Addr{}, errOptionLength
		}
		option := options[:options[1]]
		options = options[options[1]:]
		if option[0] != OptionType {
			continue
		}
		if len(option) != OptionLength {
			return netip.Addr{}, errStreamLength
		}
		if id.IsValid() {
			return netip.Addr{}, errStreamTwice
		}
		id = netip.AddrFrom4([4]byte(option[2:]))
	}
	return id, nil
}
