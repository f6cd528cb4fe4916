"""Project Wycheproof's JSON Web Signatures: valid ones are refused for their claims only, others before that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jwt.utils import base64url_decode

from service.callers import Callers, Unauthenticated
from service.jwt_keys import KeyFiles, Keys, OneKey, VerificationKey
from tests.tokens import NOW, jwks

GROUPS = json.loads((Path(__file__).parent.parent / "data" / "wycheproof_jws.json").read_text())["testGroups"]
FOR_ENCRYPTION = {"rsa_encryption", "ec_key_for_encryption"}
# The source has these the wrong way round: the first two have a sign that is no base64url (RFC 7515, 2), the last two
# have lost theirs, and are letter by letter the valid 357.
WRONG_WAY_ROUND = {372: "invalid", 373: "invalid", 367: "valid", 370: "valid"}


def keys_of(group: dict[str, Any], folder: Path) -> Keys:
    """The group's key as an operator would give it. Raises ValueError where it is no key for signatures."""
    if group["key"]["kty"] == "oct":
        return OneKey(VerificationKey(base64url_decode(group["key"]["k"]), "HS256"))
    (folder / "jwks.json").write_text(jwks(group["key"]))
    return KeyFiles(folder / "jwks.json")


@pytest.mark.parametrize("group", GROUPS, ids=[f"{group['comment']}-{group['tests'][0]['tcId']}" for group in GROUPS])
def test_every_vector_is_judged_as_its_authors_do(group: dict[str, Any], tmp_path: Path) -> None:
    wanted = {vector["tcId"]: WRONG_WAY_ROUND.get(vector["tcId"], vector["result"]) for vector in group["tests"]}
    if group["comment"] in FOR_ENCRYPTION:
        assert set(wanted.values()) == {"invalid"}
        with pytest.raises(ValueError, match="has no key that verifies"):
            keys_of(group, tmp_path)
        return
    callers = Callers(keys_of(group, tmp_path), cache_size=0)
    found = {}
    for vector in group["tests"]:
        with pytest.raises(Unauthenticated) as refused:  # none of them has claims
            callers.identify(f"Bearer {vector['jws']}", now=NOW)
        found[vector["tcId"]] = "valid" if "claims" in refused.value.reason else "invalid"
    assert found == wanted


def test_the_vectors_are_of_every_algorithm_but_one() -> None:
    assert {group["key"].get("alg") for group in GROUPS} == {"HS256", "RS256", "ES256", None}
    assert sum(len(group["tests"]) for group in GROUPS) == 316
