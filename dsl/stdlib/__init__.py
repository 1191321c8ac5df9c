"""The standard library: macros in files of the language, see dsl/expand_stdlib.py."""
