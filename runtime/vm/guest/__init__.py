"""The part that runs inside the test kernel: stdlib only, started as process 1."""
