"""What HTTP's messages are made of (RFC 9110 §5.6), as sources of regular expressions.

Each is for text decoded as Latin-1, a character for each byte; `.encode("latin-1")` makes the same pattern for bytes.
They are possessive, so that matching takes linear time.
"""

from typing import Final

TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 - no password
"""RFC 9110 §5.6.2."""
CONTROL: Final = r"[\x00-\x08\x0a-\x1f\x7f]"
"""RFC 9110 §5.5: what a field value must not contain. HTAB is the one control character that may be there."""
QUOTED_STRING: Final = r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*+"'
"""RFC 9110 §5.6.4: all but control characters, where `"` and a backslash follow a backslash."""
WHITESPACE: Final = " \t"
"""RFC 9110 §5.6.3, for `str.strip`: other blanks belong to a value."""
