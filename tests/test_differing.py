"""The comparison behind the tests of equal runs: every kind of difference is seen, and said."""

from differing import differing


def test_every_difference_is_named_and_placed() -> None:
    one = {"same": b"abc", "changed": b"step,loss\n1,0.25\n", "longer": b"ab", "gone": b""}
    other = {"same": b"abc", "changed": b"step,loss\n1,0.26\n", "longer": b"abc", "new": b""}
    found = differing(one, other)
    assert list(found) == ["changed", "gone", "longer", "new"] and differing(one, dict(one)) == {}
    assert found["gone"] == "only in the first" and found["new"] == "only in the second"
    assert found["changed"].startswith("1 of 17 and 17 bytes, first at 15") and "0.26" in found["changed"]
    assert found["longer"].startswith("0 of 2 and 3 bytes, first at 2")
