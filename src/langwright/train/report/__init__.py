"""Runs that were made: read, listed, drawn and compared."""
