"""Run by the reference implementation's interpreter: what its application takes for requests with tokens."""

import asyncio
import json
import logging
import sys
import warnings
from pathlib import Path

__all__: list[str] = []

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
sys.path.insert(0, str(Path(__file__).parent.parent))

import structlog  # type: ignore[import-not-found]  # noqa: E402
from asap.auth import OAuth2Config  # type: ignore[import-not-found]  # noqa: E402
from asap.models.entities import Capability, Endpoint, Manifest, Skill  # type: ignore[import-not-found]  # noqa: E402
from asap.transport.server import create_app  # type: ignore[import-not-found]  # noqa: E402
from joserfc.jwk import KeySet  # noqa: E402

from benchmarks.requests_with_tokens import AUDIENCE, ISSUER, keys, times  # noqa: E402

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


async def main() -> None:
    """Print seconds for a known and a new token, by algorithm."""
    ours = keys()
    published = KeySet.import_key_set({"keys": [key.as_dict(private=False) for key in ours.values()]})

    async def fetch(_uri: str) -> KeySet:
        return published

    manifest = Manifest(
        id=AUDIENCE,
        name="Measured",
        version="1.0.0",
        description="An echo",
        capabilities=Capability(asap_version="0.1", skills=[Skill(id="echo", description="Echo")]),
        endpoints=Endpoint(asap="http://localhost/asap"),
    )
    config = OAuth2Config(
        jwks_uri=f"{ISSUER}/keys", jwks_fetcher=fetch, expected_issuer=ISSUER, expected_audience=AUDIENCE
    )
    app = create_app(manifest, oauth2_config=config, require_nonce=True, rate_limit="1000000/second")
    print(json.dumps({algorithm: await times(app, algorithm, key) for algorithm, key in ours.items()}))


if __name__ == "__main__":
    asyncio.run(main())
