"""The qr-decoder service: picture -> contents of its QR codes."""
