"""One Transformer for every family: configuration, layers, cache and checkpoint formats."""
