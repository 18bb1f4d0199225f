"""Reading the metadata of identity providers."""

import json
from typing import Any

import pytest

from asap_core.auth.provider_metadata import MAX_METADATA, ProviderMetadata, metadata_urls, read_metadata
from asap_core.errors import InvalidDocument
from tests.core.auth.tokens import (
    ISSUER,
)


class TestProviderMetadata:
    @pytest.mark.parametrize(
        ("issuer", "urls"),
        [
            (
                ISSUER,
                (f"{ISSUER}/.well-known/openid-configuration", f"{ISSUER}/.well-known/oauth-authorization-server"),
            ),
            (
                f"{ISSUER}/t/1/",
                (
                    f"{ISSUER}/t/1/.well-known/openid-configuration",
                    f"{ISSUER}/.well-known/oauth-authorization-server/t/1",
                ),
            ),
        ],
    )
    def test_the_metadata_urls_are_derived_from_the_issuer(self, issuer, urls) -> None:
        assert metadata_urls(issuer) == urls

    @pytest.mark.parametrize(
        "issuer",
        ["", "id.example", "ftp://x", "https://", f"{ISSUER}?x", f"{ISSUER}#", "https://[x", "https://a:b@id.example"],
    )
    def test_invalid_issuers_are_refused(self, issuer) -> None:
        with pytest.raises(ValueError, match="expected as issuer"):
            metadata_urls(issuer)

    def test_the_endpoints_are_read(self) -> None:
        urls = {name: f"{ISSUER}/{name}" for name in ("jwks_uri", "token_endpoint", "introspection_endpoint")}
        found = read_metadata(json.dumps({"issuer": ISSUER, **urls}).encode(), issuer=ISSUER)
        assert found == ProviderMetadata(issuer=ISSUER, **urls)
        assert read_metadata(json.dumps({"issuer": ISSUER, "jwks_uri": None}).encode(), issuer=ISSUER).jwks_uri is None

    def test_the_bounds_are_as_documented(self) -> None:
        assert MAX_METADATA == 262_144
        levels = [json.loads("[" * depth + "]" * depth) for depth in (15, 16)]
        good = {"issuer": ISSUER, "other": levels[0]}
        assert read_metadata(json.dumps(good).encode(), issuer=ISSUER).issuer == ISSUER
        with pytest.raises(InvalidDocument, match="at most 16 "):
            read_metadata(json.dumps({**good, "other": levels[1]}).encode(), issuer=ISSUER)

    def test_metadata_of_another_issuer_is_refused(self) -> None:
        good = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys", "other": 1}
        assert read_metadata(json.dumps(good).encode(), issuer=ISSUER) == ProviderMetadata(
            issuer=ISSUER, jwks_uri=f"{ISSUER}/keys"
        )
        wrong: Any
        for wrong in (
            {**good, "issuer": f"{ISSUER}/"},
            {**good, "issuer": None},
            {**good, "issuer": ISSUER.upper()},
            {**good, "jwks_uri": ""},
            {**good, "jwks_uri": 5},
            [],
            {},
        ):
            with pytest.raises(InvalidDocument):
                read_metadata(json.dumps(wrong).encode(), issuer=ISSUER)
        with pytest.raises(InvalidDocument):
            read_metadata(b"{", issuer=ISSUER)
