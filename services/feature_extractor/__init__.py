"""Picture in, 20 descriptors out."""
