"""Packing: models as small files, exactly as they are or rounded within a budget."""
