#!/bin/sh
# Process 1. The kernel passes parameters it does not know as arguments, which are dropped here, or as
# environment variables, two of which say what to run.
exec "$bpfseal_python" -I -S -B "$bpfseal_agent"
