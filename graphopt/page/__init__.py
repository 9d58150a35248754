"""HTML page of a model, a run, a search or a diff: one file, no network, graphs side by side."""
