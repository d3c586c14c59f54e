"""Running a model: sampling, generation, streaming, scoring, embedding."""
