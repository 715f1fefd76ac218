"""`python -m visionmesh.cli`."""

from visionmesh.cli import main

main()
