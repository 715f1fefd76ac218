"""Trains the models of `models.toml`: the extractor and the three classifiers over its 20 descriptors."""
