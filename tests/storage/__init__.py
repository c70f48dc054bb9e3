"""A package, so that other tests can import the strategies."""
