"""Certificates of a class: an authority of its own, and the brokers' certificate for the address of today."""

import datetime
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from helpers.files import write_whole

VALID = datetime.timedelta(days=366)  # of a brokers' certificate, which is made anew with each start


def make_authority() -> trustme.CA:
    """An authority that signs for one class only; learners get its certificate in their card."""
    return trustme.CA(organization_name="Kafka Design Patterns", organization_unit_name="class")


def write_certificate(authority: trustme.CA, pem: Path, *names: str) -> None:
    """A new key and a certificate for a host's names and addresses, in one PEM file (Kafka reads keys in PKCS #8
    only)."""
    host = authority.issue_cert(*names, not_after=datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + VALID)
    key = serialization.load_pem_private_key(host.private_key_pem.bytes(), password=None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_whole(pem, key + b"".join(blob.bytes() for blob in host.cert_chain_pems), 0o600)
