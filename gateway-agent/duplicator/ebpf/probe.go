package ebpf

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Probe tells whether this host can run the backend: it loads the program and attaches it for a moment, behind whatever is attached already and
// for no group range, so that every packet passes and a running agent notices nothing. Nothing of it stays. The error wraps
// ErrUnavailable and says what to do.
func Probe(c Config) error {
	var err error
	if c.Config, err = c.Config.Complete(); err != nil {
		return err
	}
	if c.PinDir == "" {
		c.PinDir = defaultPinDir
	}
	lan, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return fmt.Errorf("duplicator: find LAN interface %q: %w; give the name of the interface that cameras are on", c.Interface, err)
	}
	if len(lan.HardwareAddr) != 6 {
		return fmt.Errorf("%w: LAN interface %s is not Ethernet", ErrUnavailable, c.Interface)
	}
	dir, err := pinDir(c, lan)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	// Only if there is nothing in them.
	defer func() { _, _ = os.Remove(dir), os.Remove(c.PinDir) }()
	if err := allowMaps(); err != nil {
		return err
	}
	spec, err := loadCopy()
	if err == nil {
		err = configure(spec, c)
	}
	if err == nil {
		err = passAll(spec)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var objects copyObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return fmt.Errorf("%w: load the program: %w%s", ErrUnavailable, err, advice(err))
	}
	defer objects.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: lan.Index, Program: objects.Copy, Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()})
	if err != nil {
		return fmt.Errorf("%w: attach the program to %s: %w%s", ErrUnavailable, lan.Name, err, advice(err))
	}
	return errors.Join(l.Detach(), l.Close())
}

// passAll makes the group range of a program an empty one.
func passAll(spec *ebpf.CollectionSpec) error {
	return errors.Join(spec.Variables[copyVarRangeFirst].Set(^uint32(0)), spec.Variables[copyVarRangeLast].Set(uint32(0)))
}
