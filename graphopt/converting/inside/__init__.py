"""What scripts of several frameworks share; importable in the child's process by its own name."""
