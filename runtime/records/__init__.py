"""What a trace has recorded, for programs that take it in bulk: pieces of memory, columns, frames, names of values."""
