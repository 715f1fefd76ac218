"""What the mesh is measured against; each peer runs as a process of its own."""
