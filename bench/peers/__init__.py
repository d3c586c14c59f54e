"""Peers, each a process of its own that prints one line of JSON."""
