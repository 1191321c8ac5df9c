// A tracepoint program without C or libbpf: made and loaded by github.com/cilium/ebpf, whose runtime interrupts its
// threads all the time. Static: CGO_ENABLED=0.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

func main() {
	if err := trace(); err != nil {
		fmt.Println("go:", err)
		os.Exit(1)
	}
}

func trace() error {
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Name: "counts", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer counts.Close()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "go_probe", Type: ebpf.TracePoint, License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, counts.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).Sym("out"),
			asm.Return(),
		}})
	if err != nil {
		return err
	}
	defer program.Close()
	attached, err := link.Tracepoint("syscalls", "sys_enter_openat", program, nil)
	if err != nil {
		return err
	}
	defer attached.Close()
	for i := 0; i < 50; i++ {
		if file, err := os.Open("/dev/null"); err == nil {
			file.Close()
		}
	}
	time.Sleep(50 * time.Millisecond)
	var count uint64
	if err := counts.Lookup(uint32(0), &count); err != nil {
		return err
	}
	fmt.Println("go: counted", count >= 50)
	return nil
}
