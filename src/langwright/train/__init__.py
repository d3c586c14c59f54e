"""Training: one loop, with objectives, optimisers, schedules and checkpoints around it."""
