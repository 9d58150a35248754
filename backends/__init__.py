"""The built-in backends: each has a Target and lowers, runs and measures models for it."""
