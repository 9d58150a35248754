"""Layout rewrites: transposes, reshapes and slices moved until they meet and vanish."""
