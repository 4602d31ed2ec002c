package duplicator

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// maxSteered is how many group IPs there may be: those of the largest range (SPEC §5), and those of the range before it.
const maxSteered = 512

// steering has the kernel hand whatever is sent to a group IP by UDP to one socket, whatever the port: a program that takes part in its search
// for a socket (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9). The kernel forgets it with this process, however that ends.
type steering struct {
	sockets *ebpf.Map // group IP → its socket
	link    link.Link
}

// openSteering begins with no group IP. Its errors say what to do.
func openSteering() (*steering, error) {
	s := &steering{}
	if err := s.open(); err != nil {
		advice := "run the agent as root or give it CAP_BPF and CAP_NET_ADMIN"
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
			advice = "this needs Linux 5.9 or later with BPF"
		}
		return nil, errors.Join(fmt.Errorf("take what cameras send to any port: %w; %s, or list the ports in media-ports", err, advice), s.close())
	}
	return s, nil
}

func (s *steering) open() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	var err error
	if s.sockets, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockHash, KeySize: 4, ValueSize: 4, MaxEntries: maxSteered}); err != nil {
		return err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "any_port", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Apache-2.0", Instructions: steer(s.sockets.FD()),
	})
	if err != nil {
		return err
	}
	defer program.Close()
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer namespace.Close()
	s.link, err = link.AttachNetNs(int(namespace.Fd()), program)
	return err
}

// Offsets in struct bpf_sk_lookup, which is part of the kernel's stable interface.
const (
	lookupProtocol = 12
	lookupLocalIP4 = 40
)

const skPass = 1

// steer is the program: a datagram to an address in the map goes to the socket there, and all else where it would go without us.
func steer(sockets int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, lookupProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_UDP, "pass"),
		asm.LoadMem(asm.R2, asm.R6, lookupLocalIP4, asm.Word), // 0 for IPv6
		asm.StoreMem(asm.RFP, -4, asm.R2, asm.Word),
		asm.LoadMapPtr(asm.R1, sockets),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),
		asm.Mov.Imm(asm.R0, skPass).WithSymbol("pass"),
		asm.Return(),
	}
}

// add hands a group IP's datagrams to a bound socket. They end with the socket.
func (s *steering) add(group netip.Addr, fd int) error {
	if err := s.sockets.Put(group.As4(), uint32(fd)); err != nil {
		return fmt.Errorf("take what cameras send to any port: %w", err)
	}
	return nil
}

func (s *steering) close() error {
	var errs []error
	if s.link != nil {
		errs = append(errs, s.link.Close())
	}
	if s.sockets != nil {
		errs = append(errs, s.sockets.Close())
	}
	return errors.Join(errs...)
}
