"""The ocr-worker service: document -> its text."""
