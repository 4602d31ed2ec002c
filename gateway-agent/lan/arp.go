package lan

import (
	"fmt"
	"os"
	"strings"
)

// CheckARP refuses kernel settings under which no ARP would be answered for a group IP: arp_ignore answers only for addresses
// that an interface has, and arp_filter only for addresses that the host itself could send from. Group IPs are neither.
func CheckARP(iface string) error {
	for _, setting := range []string{"arp_ignore", "arp_filter"} {
		for _, scope := range []string{"all", iface} {
			path := "/proc/sys/net/ipv4/conf/" + scope + "/" + setting
			value, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("lan: read kernel setting: %w", err)
			}
			if v := strings.TrimSpace(string(value)); v != "0" {
				return fmt.Errorf("lan: cameras on %s would never find a group IP, because %s is %s; set it to 0", iface, path, v)
			}
		}
	}
	return nil
}
