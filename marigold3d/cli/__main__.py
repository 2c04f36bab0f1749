"""`python -m marigold3d.cli`."""

from .app import main

main()
