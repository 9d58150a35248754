"""Devices: backends whose artifact is another runtime's file, converted, run there and compared."""
