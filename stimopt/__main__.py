"""`python -m stimopt` is the command line."""

from .cli import main

main()
