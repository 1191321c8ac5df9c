"""Bundles in files: built on one machine, sealed by whoever holds a key, run on another.

build     a script or an object of clang's to a file
seal      signatures into a file, by a helper with a key that is given
run       a file as a trace
inspect   what is in a file
verify    whether a file's seals are those of a certificate
place     what a file was made for, and whether it is here
trust     the keyrings of certificates that this machine trusts

The format is `signer.sealed_file`.
"""
