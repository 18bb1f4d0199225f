"""`asap send` and `asap token`: what they refuse."""

import pytest

TOKEN = "token --client-id x --issuer https://i.example --client-secret-file no-such-file"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ("send http://127.0.0.1:1", 2, "--skill"),
        ("send http://127.0.0.1:1 --skill ''", 2, "--skill: expected printable text"),
        (["send", "http://127.0.0.1:1", "--skill", "x", "--input", "{"], 2, "--input: expected"),
        ("send http://127.0.0.1:1 --skill x --input []", 2, "--input: expected a JSON object"),
        (["send", "http://127.0.0.1:1", "--skill", "x", "--input", '{"a":1,"a":2}'], 2, "--input: expected"),
        (["send", "http://127.0.0.1:1", "--skill", "x", "--input", "\udcff"], 2, "--input: expected UTF-8"),
        ("send http://127.0.0.1:1 --skill x --sender me", 2, "--sender: expected an agent URN"),
        (["send", "http://127.0.0.1:1", "--skill", "x", "--token", "hunter2\n"], 2, "--token: expected visible"),
        ("send http://127.0.0.1:1 --skill x --nonce ''", 2, "--nonce: expected"),
        (["send", "http://127.0.0.1:1", "--skill", "x", "--idempotency-key", "é"], 2, "1 to 256 visible ASCII"),
        ("send http://127.0.0.1:1 --skill x --allow-endpoint x", 2, "expected an origin"),
        ("send http://127.0.0.1:1 --skill x --token t --client-id x", 2, "expected --token or --client-id, not both"),
        ("send http://127.0.0.1:1 --skill x --issuer https://i.example", 2, "--issuer needs --client-id"),
        ("send http://127.0.0.1:1 --skill x --client-id x", 2, "--client-id needs --issuer or --token-endpoint"),
        ("token", 2, "expected --client-id"),
        ("token --client-id x --issuer x", 2, "--issuer: expected as issuer a URL"),
        ("token --client-id x --issuer https://i.example", 2, "needs --client-secret-file or --client-key"),
        (f"{TOKEN} --client-key y", 2, "expected --client-secret-file or --client-key, not both"),
        (TOKEN, 1, "no-such-file: No such file"),
        (f"{TOKEN} --scope 'a b'", 2, "--scope: expected one scope"),
        (f"{TOKEN} --dpop-key no-such-file", 1, "no-such-file: No such file"),
    ],
)
def test_an_error_is_one_line(refuses, argv, code, says) -> None:
    refuses(argv, code, says)
