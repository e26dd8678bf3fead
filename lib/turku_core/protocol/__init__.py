"""The v1 protocol: its messages and the client that sends them."""
