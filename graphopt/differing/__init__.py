"""Graph diff: which node of one model is which of another, and what became of the rest."""
