package duplicator_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/groupcast/groupcast/gateway-agent/duplicator"
	"github.com/groupcast/groupcast/gateway-agent/table"
)

// noRingEnv makes this program run its tests as on a host that has io_uring disabled.
const noRingEnv = "GROUPCAST_TEST_NO_RING"

// Where io_uring may not be used, copies are the same.
func TestWithoutARingCopiesAreTheSame(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run",
		"^(TestEveryDestinationGetsTheSamePayload|TestARefusedPortCostsNothing|TestMoreDestinationsThanARingTakes|TestSocketsOfDestinationsThatLeftAreClosed|TestCloseFreesEverything)$")
	cmd.Env = append(os.Environ(), noRingEnv+"=1")
	out, err := cmd.CombinedOutput()
	if passed := strings.Count(string(out), "\n--- PASS"); err != nil || passed != 5 {
		t.Errorf("%d of 5 tests passed: %v\n%s", passed, err, out)
	}
}

// forbidRing has this process refused what it would need, as systemd and container runtimes do it.
func forbidRing() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_IO_URING_SETUP},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	if err := duplicator.ProbeRing(); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("io_uring isn't forbidden: %w", err)
	}
	return nil
}

func TestMoreDestinationsThanARingTakes(t *testing.T) {
	const many = 70
	d, cam := open(t, config()), newCamera(t)
	var all []receiver
	var destinations []table.Destination
	for i := range many {
		all = append(all, listenSomewhere(t, 11))
		destinations = append(destinations, all[i].destination(fmt.Sprint(i)))
	}
	apply(t, d, snapshot(group(firstGroup, destinations...)))
	for i := range 20 {
		cam.send(firstGroup, fmt.Sprint("video ", i))
		for _, r := range all {
			r.expect(fmt.Sprint("video ", i))
		}
	}
	settle(t, d, firstGroup)
	for id, c := range d.Counters().Destinations {
		if c.Packets != 20 || len(c.Drops) > 0 {
			t.Errorf("destination %s: %+v", id, c)
		}
	}
}

// A datagram alone leaves by the ring, if there is one, from so many destinations on; for fewer a send each is as fast.
func TestADatagramAloneLeavesTogether(t *testing.T) {
	if err := duplicator.ProbeRing(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]int{worthRing - 1: 0, worthRing: worthRing, 8: 8} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			before := ringSends(t)
			d, cam := open(t, config()), newCamera(t)
			var all []receiver
			var destinations []table.Destination
			for i := range n {
				all = append(all, listenSomewhere(t, 11))
				destinations = append(destinations, all[i].destination(fmt.Sprint(i)))
			}
			apply(t, d, snapshot(group(firstGroup, destinations...)))
			cam.send(firstGroup, "video")
			for _, r := range all {
				r.expect("video")
			}
			if got := ringSends(t) - before; got != want {
				t.Errorf("%d of %d copies were sent by a ring, want %d", got, n, want)
			}
		})
	}
}

var ringHead = regexp.MustCompile(`(?m)^CachedSqHead:\s*(\d+)`)

// ringSends is how many sends this process's rings have been given, as the kernel says.
func ringSends(t *testing.T) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	sends := 0
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != "anon_inode:[io_uring]" {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + filepath.Base(link))
		if err != nil {
			t.Fatal(err)
		}
		found := ringHead.FindSubmatch(info)
		if found == nil {
			t.Fatalf("no head in %s", info)
		}
		head, err := strconv.Atoi(string(found[1]))
		if err != nil {
			t.Fatal(err)
		}
		sends += head
	}
	return sends
}
