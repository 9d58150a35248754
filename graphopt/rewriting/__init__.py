"""Rewriting: rules and patterns, and the large edits: cutting, resizing, raising the opset."""
