"""Everything that touches the kernel: load, attach, read, render; the command line."""
