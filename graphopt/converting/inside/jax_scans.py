"""Scans of JAX in the one direction that its converter knows; for scripts of the child alone."""

from typing import Any

__all__ = ["scan_forwards"]


def scan_forwards() -> None:
    """Let `jax.lax.scan` go forwards over what is turned about, where it was to go backwards."""
    import jax

    scan = jax.lax.scan

    def turned(tree: Any) -> Any:
        return jax.tree_util.tree_map(lambda x: jax.numpy.flip(x, 0), tree)

    def forwards(
        f: Any, init: Any, xs: Any = None, length: Any = None, reverse: bool = False, **others: Any
    ) -> Any:
        if not reverse:
            return scan(f, init, xs, length, **others)
        carry, ys = scan(f, init, turned(xs), length, **others)
        return carry, turned(ys)

    jax.lax.scan = forwards
