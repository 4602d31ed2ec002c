package ebpf

import "github.com/cilium/ebpf"

// Entries counts what the maps hold, for the soak.
func (b *Backend) Entries() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return map[string]int{
		"groups": count(b.kernel.maps.Groups, make([]byte, 4), new(uint32)), "sources": count(b.kernel.maps.Sources, new(sourceKey), new(source)),
		"rests":   count(b.kernel.maps.Rests, new(uint32), new(uint32)),
		"streams": len(b.ports.all()), "sockets": len(b.ports.sockets), "present": len(b.until.present),
	}
}

func count(m *ebpf.Map, key, value any) (n int) {
	for i := m.Iterate(); i.Next(key, value); {
		n++
	}
	return n
}
