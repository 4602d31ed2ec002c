package agent

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// giveUpTracing drops CAP_PERFMON from every thread and for good. The kernel asks for it once, when the program that copies is loaded; afterwards it would
// only help somebody who took over the agent, who could read the kernel's memory with it. Who has CAP_SYS_ADMIN has that in any case, and keeps it.
func giveUpTracing() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	const admin, perfmon = 1 << unix.CAP_SYS_ADMIN, 1 << (unix.CAP_PERFMON - 32)
	if data[0].Permitted&admin != 0 || data[1].Permitted&perfmon == 0 {
		return nil
	}
	data[1].Effective &^= perfmon
	data[1].Permitted &^= perfmon
	data[1].Inheritable &^= perfmon
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	switch errno {
	case 0:
		return nil
	case unix.ENOTSUP:
		return fmt.Errorf("%w in a program that was built with cgo; build it with CGO_ENABLED=0, as make does", errno)
	default:
		return fmt.Errorf("drop the capability: %w", errno)
	}
}
