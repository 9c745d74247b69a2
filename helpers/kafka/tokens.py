"""Tokens for SASL's OAUTHBEARER: asked for by kafka-python's clients whenever they log in."""

import time

import requests
from kafka.net.sasl.oauth import AbstractTokenProvider


class Tokens(AbstractTokenProvider):
    """Access tokens of an identity provider, by OAuth 2.0's grant for programs ("client credentials", RFC 6749).

    Args:
        url: the provider's token endpoint.
        client: the client's id.
        secret: its secret.
        scope: what the token is for; not sent where it is empty.
    """

    def __init__(self, url: str, client: str, secret: str, scope: str = ""):
        self.url, self.client, self.secret, self.scope = url, client, secret, scope
        self._token, self._until = "", 0.0

    def token(self) -> str:
        """Return a token that is good for another half of a minute.

        Raises:
            requests.RequestException: the provider cannot be reached, or gave none.
        """
        if time.time() > self._until - 30:
            asked = {"grant_type": "client_credentials"} | ({"scope": self.scope} if self.scope else {})
            answer = requests.post(self.url, asked, auth=(self.client, self.secret), timeout=10)
            answer.raise_for_status()
            given = answer.json()
            self._token, self._until = given["access_token"], time.time() + int(given.get("expires_in", 300))
        return self._token
