"""Pictures in, results out: what people and programs talk to."""
