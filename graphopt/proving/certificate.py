"""Certificate: what is known of a result's edits, in its metadata, and how to check it again.

It names source and result by SHA-256 and counts the verdicts of every exact step. Checking needs
both files and none of the passes: the regions between the two graphs are found, proved and run anew
(proof-carrying code: Necula, POPL 1997).
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt.errors import InputError
from graphopt.graph.provenance import CERTIFICATE
from graphopt.io.digest import digest
from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import Window, windows_of
from graphopt.reporting.records import Evidence, Step

__all__ = ["Certificate", "Verified", "certified", "verify"]


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Who was made of whom, and what is known of it.

    Attributes:
        source, result: SHA-256 of graph and weights, without metadata.
        steps: of each step that was kept, its spec and the evidence of its edits; None of a lossy
            one, which changes values on purpose.
    """

    source: str
    result: str
    steps: tuple[tuple[str, Evidence | None], ...]

    @property
    def lossy(self) -> list[str]:
        """The steps that changed values on purpose."""
        return [spec for spec, known in self.steps if known is None]

    def to_text(self) -> str:
        """Compact JSON."""
        steps = [[s, None if e is None else dataclasses.astuple(e)] for s, e in self.steps]
        data = {"source": self.source, "result": self.result, "steps": steps}
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def of(cls, model: ir.Model) -> Certificate:
        """The certificate in a model's metadata. Raises InputError if it has none."""
        text = model.metadata_props.get(CERTIFICATE)
        if text is None:
            raise InputError(
                "it holds no certificate: --verify graph, --strip or another tool wrote it"
            )
        try:
            data = json.loads(text)
            steps = tuple((str(s), None if e is None else Evidence(*e)) for s, e in data["steps"])
            return cls(data["source"], data["result"], steps)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"its certificate is damaged ({type(error).__name__})") from error


def certified(source: str, model: ir.Model, steps: Sequence[Step]) -> Certificate:
    """The certificate of a result: `source` is the digest of what it was made of."""
    kept = tuple((s.spec, s.evidence) for s in steps if s.status == "kept")
    return Certificate(source, digest(model), kept)


@dataclasses.dataclass(frozen=True)
class Verified:
    """What checking a certificate found.

    Attributes:
        certificate: what the file says.
        regions: how many regions between source and result are proved, checked and assumed.
        failed: the regions that compute something else, or of which nothing is known, where an
            output depends on them.
        outputs: outputs that are not shown to be the source's.
    """

    certificate: Certificate
    regions: Mapping[str, int]
    failed: tuple[Window, ...]
    outputs: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every output is shown to be the source's."""
        return not self.outputs


def verify(source: ir.Model, result: ir.Model) -> Verified:
    """Check a result against its source again, without the passes.

    Raises:
        InputError: it holds no certificate, either file is another one than it says, or a step was
            lossy, so that equality was never claimed.
    """
    held = Certificate.of(result)
    for what, model, said in (("source", source, held.source), ("result", result, held.result)):
        if digest(model) != said:
            raise InputError(f"the {what} is not the model that the certificate is of")
    if held.lossy:
        raise InputError(
            f"{', '.join(held.lossy)} changed values on purpose: the hashes hold, and "
            "`graphopt compare` tells how far the outputs moved"
        )
    found = windows_of(numbered(source), result, check)
    counts = Counter(w.verdict for w in found.windows)
    return Verified(
        held,
        {v: counts[v] for v in ("proved", "checked", "assumed")},
        tuple(w for w in found.windows if w.verdict in ("assumed", "refuted"))
        if found.open
        else (),
        found.open,
    )
