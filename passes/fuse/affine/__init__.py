"""Affine folding: scales and shifts taken into the linear operator before or behind them."""
