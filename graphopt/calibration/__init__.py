"""Calibration: what samples tell: ranges, histograms, moments, sensitivity."""
