"""What a connection writes that no other test reads."""

from email.utils import formatdate

from hypothesis import given, strategies as st

from asap_adapters.server.channel import http_date


@given(st.integers(0, 253_402_300_799))  # to the end of the year 9999
def test_a_date_is_as_the_standard_library_writes_it(seconds: int) -> None:
    assert http_date(seconds) == formatdate(seconds, usegmt=True)
