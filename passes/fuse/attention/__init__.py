"""Attention fusion: scaled dot products, masks, heads and rotary embeddings as exported."""
