"""Checkpoints: Hugging Face folders read and written, GGUF files read, and where models come from."""
