"""Typed script to Bundle: LLVM IR, BPF object, kernel types, compile cache."""
