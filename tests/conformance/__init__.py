"""A package, so that the test can be run in another process too."""
