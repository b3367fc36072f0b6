"""`python -m patchconvnet`."""

from patchconvnet.cli import run_and_exit

run_and_exit()
