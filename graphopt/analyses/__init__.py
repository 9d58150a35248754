"""Analyses: plain functions of a context, asked for by `ctx.get(function)`."""
