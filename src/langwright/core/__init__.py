"""What everything stands on: configuration, files that are whole or absent, errors, the machine."""
