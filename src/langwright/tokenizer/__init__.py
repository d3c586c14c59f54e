"""Text to ids and back: loading, training, streaming, and chat templates that content cannot break out of."""
