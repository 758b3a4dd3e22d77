"""The token of a runner's client: whether it has expired, and signing a new one."""

from __future__ import annotations

import base64
import time
from typing import Any

import orjson

#: A token is old when this part of its life, or this many seconds, is left. The server renews it with each answer in
#: the last fifth of its life, so one request is enough then.
_OLD_PART, _OLD_S = 0.15, 25


def claims_of(client: Any) -> dict[str, Any]:
    """Return the claims of the client's token, unverified; empty when it has none."""
    return claims_in(getattr(getattr(client, "auth", None), "token", None))


def claims_in(token: Any) -> dict[str, Any]:
    """Return the claims of a token, unverified; empty when it is none."""
    try:
        body = token.split(".")[1]
        claims = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (AttributeError, IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def is_token_old(client: Any) -> bool:
    """Return whether a request is due so that the server renews the token with its answer."""
    claims = claims_of(client)
    try:
        left_s, life_s = claims["exp"] - time.time(), claims["exp"] - claims["iat"]
    except (KeyError, TypeError):
        return False
    return bool(left_s <= max(life_s * _OLD_PART, _OLD_S))


def replace_bad_token(client: Any) -> bool:
    """Sign a new token for the client if its own is not valid now.

    It may have expired while the server was away, or the clock was set back; then the server renews it no more. A
    runner that has the scheduler's configuration has its key, too. One that has not leaves the client as it is.

    :return: whether the client has a new token.
    """
    from airflow.sdk.api.client import BearerAuth

    claims = claims_of(client)
    if not claims.get("sub") or claims.get("iat", 0) <= time.time() < claims.get("exp", 0):
        return False
    try:
        from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args
        from airflow.configuration import conf

        generator = JWTGenerator(
            valid_for=conf.getint("execution_api", "jwt_expiration_time"),
            audience=conf.get_mandatory_list_value("execution_api", "jwt_audience")[0],
            issuer=conf.get("api_auth", "jwt_issuer", fallback=None),
            **get_signing_args(make_secret_key_if_needed=False),
        )
        scope = {"scope": "execution"} if "scope" in claims else {}
        client.auth = BearerAuth(generator.generate({"sub": claims["sub"], **scope}))
    except Exception as error:
        print(f"the token is not valid now, and none can be signed here: {error}", flush=True)
        return False
    return True
