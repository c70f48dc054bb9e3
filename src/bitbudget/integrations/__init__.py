"""How other libraries load and run a finished checkpoint. Importing this package imports none of them."""
