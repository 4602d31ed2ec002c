#!/usr/bin/env bash
# Compiles copy.bpf.c if it isn't what the committed object was made from. So clang and libbpf's headers (Debian: clang, llvm,
# libbpf-dev) are needed only by whoever changes it, and an object that doesn't belong to its source is found without them. The objects lie compressed in the agent: it
# has to fit into a router.
set -euo pipefail
cd "$(dirname "$0")"
record=copy.sha256
made=(copy.bpf.c generate.sh copy_bpfel.go copy_bpfel.o.gz relay_bpfel.go relay_bpfel.o.gz)
if sha256sum --status --check "$record" 2>/dev/null; then
	exit 0
fi
if ! command -v clang llvm-strip >/dev/null; then
	echo "gateway-agent/duplicator/ebpf: copy.bpf.c changed: install clang, llvm and libbpf-dev to compile it" >&2
	exit 1
fi
flags="-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/$(uname -m)-linux-gnu"
compile() { # PREFIX CLANG-FLAGS BPF2GO-FLAG...
	local prefix=$1 cflags=$2
	shift 2
	GOPACKAGE=ebpf go tool -modfile=../../../.ci/tools/go.mod bpf2go -target bpfel -no-global-types -cc clang -cflags "$cflags" "$@" "$prefix" copy.bpf.c
	gzip -9nf "${prefix}_bpfel.o"
	sed -i -e 's/^\(\/\/go:embed .*\)\.o$/\1.o.gz/' -e 's/bytes\.NewReader(/unpacked(/' -e '/^\t"bytes"$/d' "${prefix}_bpfel.go"
}
compile copy "$flags"
# The same program for a relay's tunnel, which agents for mipsle have none of.
compile relay "$flags -DRELAY" -tags '!mipsle'
sha256sum "${made[@]}" >"$record"
