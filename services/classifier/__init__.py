"""20 descriptors in, a label out. One package, run as fast, balanced and accurate."""
