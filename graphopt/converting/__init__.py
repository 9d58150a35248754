"""Models of other frameworks, each converted by its own converter in a process of its own."""
