package camera

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/groupcast/groupcast/internal/rtp"
)

// Pace says when the packets of a transport stream leave.
type Pace struct {
	// Bitrate sends at a constant rate of transport stream bits per second; 0 does not.
	Bitrate int64
	// ByClock sends by the clock references in the stream, if there is no Bitrate. Without either, packets leave as they are read.
	ByClock bool
	// RTP puts the packets into RTP (RFC 2250), so that receivers can tell what is missing.
	RTP bool
}

var errNotTransportStream = errors.New("the input is not an MPEG transport stream: make one with \"ffmpeg -i INPUT -c copy -f mpegts -\"")

// sendTransportStream sends all of the stream, seven packets to a datagram, and returns at its end.
func sendTransportStream(ctx context.Context, stream io.Reader, pace Pace, send func([]byte)) error {
	in := bufio.NewReaderSize(stream, 64*rtp.DatagramPackets*rtp.PacketSize)
	began := time.Now()
	packer := rtp.NewPacker(began)
	var clock rtp.Clock
	var bits int64
	block := make([]byte, rtp.DatagramPackets*rtp.PacketSize)
	for ctx.Err() == nil {
		n, err := io.ReadFull(in, block)
		if errors.Is(err, io.EOF) {
			return nil
		}
		last := errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return fmt.Errorf("read the stream: %w", err)
		}
		packets := block[:n-n%rtp.PacketSize]
		if last && len(packets) == 0 && bits > 0 {
			return nil // the rest of a packet at the end of a file that was cut off
		}
		if !rtp.IsTransportStream(packets) {
			return errNotTransportStream
		}
		due := began
		switch after, ok := clock.Due(packets); {
		case pace.Bitrate > 0:
			// In floating point, since bits times nanoseconds overflow.
			due = began.Add(time.Duration(float64(bits) / float64(pace.Bitrate) * float64(time.Second)))
		case pace.ByClock && ok:
			due = began.Add(after)
		}
		if !sleepUntil(ctx, due) {
			break
		}
		bits += int64(len(packets)) * 8
		datagram := packets
		if pace.RTP {
			if datagram, err = packer.Pack(packets, time.Now()); err != nil {
				return err
			}
		}
		send(datagram)
		if last {
			break
		}
	}
	return nil
}

func sleepUntil(ctx context.Context, due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
