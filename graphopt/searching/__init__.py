"""Search: the cheapest model that keeps its promise, chosen layer by layer and jointly."""
