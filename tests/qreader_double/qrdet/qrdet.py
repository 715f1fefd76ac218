"""Where weights are downloaded from."""

_WEIGHTS_URL_FOLDER = "https://example.org/v2.0_release"
