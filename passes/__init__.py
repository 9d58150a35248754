"""The built-in passes. They use only graphopt's public API, as a pass of your own would."""
