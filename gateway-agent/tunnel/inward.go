//go:build !mipsle

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"
)

// nftTime is more than nft needs.
const nftTime = 5 * time.Second

// inward has the kernel drop what comes out of an interface and isn't IPv4 in IPv6 for this address, or a fragment of that. WireGuard only sees to it that a peer uses its own source address, and
// the rule of link that nothing is forwarded: without this a peer could reach whatever listens on this host, at any of its IPv6 addresses. It is what strict is in user space. It needs nft.
func inward(name string, address netip.Addr) error {
	return nft(fmt.Sprintf(`add table netdev groupcast_%[1]s
delete table netdev groupcast_%[1]s
table netdev groupcast_%[1]s {
	chain inward {
		type filter hook ingress device "%[1]s" priority -500; policy drop;
		ip6 daddr %[2]s ip6 nexthdr %[3]d accept
		ip6 daddr %[2]s ip6 nexthdr %[4]d frag nexthdr %[3]d accept
	}
}`, name, address, protoIPv4, protoFragment))
}

// outward removes what inward installed.
func outward(name string) error {
	return nft(fmt.Sprintf("add table netdev groupcast_%[1]s\ndelete table netdev groupcast_%[1]s", name))
}

func nft(script string) error {
	path, err := exec.LookPath("nft")
	if err != nil {
		return errors.New("there is no nft on this host, which would keep the tunnel's peers from whatever listens here: install nftables")
	}
	ctx, cancel := context.WithTimeout(context.Background(), nftTime)
	defer cancel()
	c := exec.CommandContext(ctx, path, "-f", "-")
	c.Stdin = strings.NewReader(script)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %.200s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
