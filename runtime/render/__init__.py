"""Values, maps and events to text and JSON, as bpftrace writes them."""
