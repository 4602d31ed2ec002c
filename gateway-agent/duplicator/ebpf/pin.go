package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/packet"
)

// What stays in the BPF file system while no agent runs: the link, which holds the program and with it all its maps, and the map of
// the camera streams, so that they keep their source ports. The next agent loads a program with maps of its own, fills them, and has the
// link point to it at once; so nothing of the old program's layout has to be understood but the streams', and that one is checked.
const (
	pinnedLink    = "link"
	pinnedStreams = "streams"
)

// entries is the number of counters and deadlines: groups and destinations, and those that left of late.
const entries = 4096

// kernel is the loaded program.
type kernel struct {
	dir   string // of the pins
	lan   int    // index of the LAN interface
	maps  copyMaps
	prog  *ebpf.Program
	link  link.Link // nil until the program is attached
	taken bool
}

func load(c Config, lan *net.Interface) (*kernel, error) {
	dir, err := pinDir(c, lan)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	sweep(c.PinDir)
	if err := allowMaps(); err != nil {
		return nil, err
	}
	spec, err := loadCopy()
	if err == nil {
		err = configure(spec, c)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	k := &kernel{dir: dir, lan: lan.Index}
	if err := k.load(spec); err != nil {
		return nil, err
	}
	if err := k.attach(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: attach the program to %s: %w%s", ErrUnavailable, lan.Name, err, advice(err)), k.close())
	}
	return k, nil
}

func (k *kernel) load(spec *ebpf.CollectionSpec) error {
	var objects copyObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return fmt.Errorf("%w: load the program: %w%s", ErrUnavailable, err, advice(err))
	}
	k.maps, k.prog = objects.copyMaps, objects.Copy
	return nil
}

func allowMaps() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("%w: %w; run the agent as root or give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN", ErrUnavailable, err)
	}
	return nil
}

func advice(err error) string {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "; run the agent as root or give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL):
		return "; this needs Linux 6.6 or later"
	}
	return ""
}

func configure(spec *ebpf.CollectionSpec, c Config) error {
	first, last := c.GroupRange.First.As4(), c.GroupRange.Last.As4()
	return errors.Join(
		spec.Variables[copyVarRangeFirst].Set(binary.BigEndian.Uint32(first[:])), spec.Variables[copyVarRangeLast].Set(binary.BigEndian.Uint32(last[:])),
		configureBoth(spec, c, c.GroupRange.Size(), entries, c.MaxStreams),
	)
}

// configureBoth is what a home's program and a relay's have alike.
func configureBoth(spec *ebpf.CollectionSpec, c Config, groups, entries, streams int) error {
	spec.Maps[copyMapGroups].MaxEntries = uint32(groups)
	spec.Maps[copyMapRests].MaxEntries = uint32(groups) + 1 // one is there twice while it is swapped
	spec.Maps[copyMapCounts].MaxEntries = uint32(entries)
	spec.Maps[copyMapDeadlines].MaxEntries = uint32(entries)
	spec.Maps[copyMapPaces].MaxEntries = uint32(entries)
	spec.Maps[copyMapStreams].MaxEntries = uint32(streams)
	spec.Maps[copyMapPorts].MaxEntries = uint32(streams)
	uplink := c.Uplink.As4()
	var ports [16]uint16
	count := copy(ports[:], c.Ports)
	if c.AnyPort {
		count = 0
	} else if count < len(c.Ports) {
		return fmt.Errorf("%d media ports are more than %d", len(c.Ports), count)
	}
	var nop uint32
	if c.CopyOptions == packet.NOP {
		nop = 1
	}
	for name, value := range map[string]any{
		copyVarUplink: uplink, copyVarMediaPorts: ports, copyVarMediaPortCount: uint32(count), copyVarNopOptions: nop,
		copyVarPacePerByte: duplicator.PerByte(c.DestinationRate), copyVarPaceBurst: duplicator.Burst * duplicator.PerByte(c.DestinationRate) >> 10,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return err
		}
	}
	return nil
}

// pinPath gives the directory of this interface in this network namespace.
func pinPath(c Config, lan *net.Interface) (string, error) {
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &namespace); err != nil {
		return "", fmt.Errorf("read the network namespace: %w", err)
	}
	return filepath.Join(c.PinDir, fmt.Sprintf("interface-%d-of-%d", lan.Index, namespace.Ino)), nil
}

// pinDir makes the directory.
func pinDir(c Config, lan *net.Interface) (string, error) {
	dir, err := pinPath(c, lan)
	if err != nil {
		return "", err
	}
	err = os.MkdirAll(dir, 0o700)
	var stat unix.Statfs_t
	if err == nil {
		err = unix.Statfs(dir, &stat)
	}
	if err == nil && uint32(stat.Type) != unix.BPF_FS_MAGIC {
		_ = os.Remove(dir)
		return "", fmt.Errorf("%s is not in a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf", c.PinDir)
	}
	if err != nil {
		return "", fmt.Errorf("%w; mount a BPF file system and let the agent write there: mount -t bpf bpf /sys/fs/bpf", err)
	}
	return dir, nil
}

// attach attaches the program, unless an earlier agent's is still there: that one goes on until takeOver.
func (k *kernel) attach() error {
	path := filepath.Join(k.dir, pinnedLink)
	old, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		if k.here(old) {
			k.link = old
			return nil
		}
		err = errors.Join(old.Unpin(), old.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(path) // whatever it is, it is no link to our program
	}
	fresh, err := link.AttachTCX(link.TCXOptions{Interface: k.lan, Program: k.prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	if err != nil {
		return err
	}
	k.link, k.taken = fresh, true
	return errors.Join(k.link.Pin(path), k.pinStreams())
}

// sweep removes what belongs to interfaces that are gone: a program stays in memory as long as its link is pinned.
func sweep(dir string) {
	pins, _ := filepath.Glob(filepath.Join(dir, "interface-*", pinnedLink)) // the pattern is right
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			continue
		}
		info, err := l.Info()
		if err == nil && info.TCX() != nil && info.TCX().Ifindex == 0 {
			_ = os.RemoveAll(filepath.Dir(pin))
		}
		_ = l.Close()
	}
}

// here tells whether a link is one to our interface, which may have gone and come again since.
func (k *kernel) here(l link.Link) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	tcx := info.TCX()
	return tcx != nil && int(tcx.Ifindex) == k.lan && ebpf.AttachType(tcx.AttachType) == ebpf.AttachTCXIngress
}

func (k *kernel) pinStreams() error {
	path := filepath.Join(k.dir, pinnedStreams)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return k.maps.Streams.Pin(path)
}

// takeOver puts our program, whose maps are filled by now, in the place of an earlier agent's. It does so once.
func (k *kernel) takeOver(ports *portPool) error {
	if k.taken {
		return nil
	}
	if old, err := ebpf.LoadPinnedMap(filepath.Join(k.dir, pinnedStreams), nil); err == nil {
		ports.adopt(old)
		_ = old.Close()
	}
	if err := k.link.Update(k.prog); err != nil {
		return fmt.Errorf("replace the program of the agent before: %w", err)
	}
	k.taken = true
	return k.pinStreams()
}

// close frees what this process holds. The pins stay.
func (k *kernel) close() error {
	var errs []error
	if k.link != nil {
		errs = append(errs, k.link.Close())
	}
	return errors.Join(append(errs, k.prog.Close(), k.maps.Close())...)
}

// Remove takes what an earlier agent left on the interface out of the kernel. It does nothing if there is nothing, or if this agent may not
// look there: what an agent with more rights left is then ended by its deadline, but its program keeps dropping what cameras send.
func Remove(c Config) error {
	if c.PinDir == "" {
		c.PinDir = defaultPinDir
	}
	lan, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return fmt.Errorf("duplicator: find LAN interface %q: %w; give the name of the interface that cameras are on", c.Interface, err)
	}
	dir, err := pinPath(c, lan)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil // on a read-only file system os.RemoveAll would not say so
	}
	if old, err := link.LoadPinnedLink(filepath.Join(dir, pinnedLink), nil); err == nil {
		// Removing the last pin would do it too, but later.
		if err := errors.Join(old.Detach(), old.Close()); err != nil {
			return fmt.Errorf("duplicator: detach the program of an earlier agent from %s: %w", c.Interface, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("duplicator: remove the program of an earlier agent: %w; remove %s as root", err, dir)
	}
	return nil
}
