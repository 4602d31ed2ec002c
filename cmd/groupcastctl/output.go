package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/groupcast/groupcast/receiver"
)

// openOutput opens "-" (standard output), "udp:ADDRESS:PORT" or a file, which gets no more than limit bytes; 0 is no limit.
func openOutput(to string, limit int64) (media func(receiver.Datagram) error, closing func() error, err error) {
	if at, ok := strings.CutPrefix(to, "udp:"); ok {
		address, err := netip.ParseAddrPort(at)
		if err != nil {
			return nil, nil, fmt.Errorf("--to: %q is not an address and port: give for example udp:127.0.0.1:6000", at)
		}
		port, err := receiver.ToPort(address)
		if err != nil {
			return nil, nil, fmt.Errorf("--to: %w", err)
		}
		return port.Media, port.Close, nil
	}
	file := os.Stdout
	if to != "-" {
		if file, err = os.Create(to); err != nil {
			return nil, nil, fmt.Errorf("--to: %w", err)
		}
	}
	if limit == 0 {
		return receiver.ToWriter(file), file.Close, nil
	}
	return receiver.ToWriter(&limited{file, limit}), file.Close, nil
}

// limited leaves out what there is no room for.
type limited struct {
	w    io.Writer
	room int64
}

func (l *limited) Write(b []byte) (int, error) {
	if l.room -= int64(len(b)); l.room < 0 {
		l.room = 0
		return len(b), nil
	}
	return l.w.Write(b)
}
