"""Entropy coding: numbers in about as many bits as they carry, and the file that holds them."""
