"""The sensors: what each driver does to get readings out of its hardware."""
