"""Files are put in place once they were checked, or not at all."""

import pytest

from graphopt.errors import ModelError
from graphopt.replacing import replace_files


def test_what_a_check_refuses_is_not_put_in_place(tmp_path):
    old = tmp_path / "m.gopt"
    old.write_bytes(b"old")
    seen = []

    def check(written):
        seen.append(written.read_bytes())
        raise ModelError("it does not decode")

    with pytest.raises(ModelError, match="does not decode"):
        replace_files([(old, [b"n", b"ew"])], check)
    assert seen == [b"new"]
    assert [p.name for p in tmp_path.iterdir()] == ["m.gopt"]
    assert old.read_bytes() == b"old"
