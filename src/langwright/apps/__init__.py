"""What people do with a model: talk to it, and see one being made."""
