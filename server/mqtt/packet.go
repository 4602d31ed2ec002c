package mqtt

import (
	"bytes"
	"errors"
	"io"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/groupcast/groupcast/server/dpop"
	"github.com/groupcast/groupcast/server/tokens"
)

const (
	// maxConnect is the longest CONNECT that is read, in bytes: a token, a proof, and the rest.
	maxConnect = tokens.MaxSize + dpop.MaxSize + 512
	// maxPacket is the longest of any other packet, in bytes.
	maxPacket = 4 << 10
)

var (
	errMalformed = errors.New("not a packet of MQTT 3.1.1")
	errTooLong   = errors.New("the packet is longer than allowed")
	errVersion   = errors.New("another version of MQTT")
	errType      = errors.New("a type of packet that is not taken here")
)

// flags are the fixed header's flags of the packets that a client may send (MQTT 3.1.1 §2.2.2). PUBLISH isn't among them: what a device has to
// say it says over HTTP.
var flags = map[byte]byte{
	packets.Connect: 0, packets.Puback: 0, packets.Subscribe: 2, packets.Unsubscribe: 2, packets.Pingreq: 0, packets.Disconnect: 0,
}

// readPacket reads one packet of at most limit bytes after its fixed header. It reads no byte more than that.
func readPacket(r io.Reader, limit int) (packets.ControlPacket, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return nil, err
	}
	kind := head[0] >> 4
	if want, ok := flags[kind]; !ok || head[0]&0x0f != want {
		return nil, errType
	}
	size, n := int(head[1]&0x7f), 2
	for ; head[n-1]&0x80 != 0; n++ {
		if n == len(head) {
			return nil, errMalformed
		}
		if _, err := io.ReadFull(r, head[n:n+1]); err != nil {
			return nil, err
		}
		size |= int(head[n]&0x7f) << (7 * (n - 1))
	}
	if size > limit {
		return nil, errTooLong
	}
	raw := make([]byte, n+size)
	copy(raw, head[:n])
	if _, err := io.ReadFull(r, raw[n:]); err != nil {
		return nil, err
	}
	if kind == packets.Connect && !bytes.HasPrefix(raw[n:], []byte("\x00\x04MQTT\x04")) {
		if bytes.HasPrefix(raw[n:], []byte("\x00\x04MQTT")) || bytes.HasPrefix(raw[n:], []byte("\x00\x06MQIsdp")) {
			return nil, errVersion
		}
		return nil, errMalformed
	}
	p, err := packets.ReadPacket(bytes.NewReader(raw))
	if err != nil {
		return nil, errMalformed
	}
	// The decoder takes a field that ends early, and doesn't mind what is left over. So a packet has to be what it would be written as.
	var again bytes.Buffer
	if err := p.Write(&again); err != nil || !bytes.Equal(again.Bytes(), raw) {
		return nil, errMalformed
	}
	return p, nil
}

// encode writes a packet into bytes.
func encode(p packets.ControlPacket) []byte {
	var b bytes.Buffer
	_ = p.Write(&b) // a buffer takes everything
	return b.Bytes()
}

func connack(code byte) []byte {
	p := packets.NewControlPacket(packets.Connack).(*packets.ConnackPacket)
	p.ReturnCode = code
	return encode(p)
}
