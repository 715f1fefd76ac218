"""In the place of the qrdet package."""
