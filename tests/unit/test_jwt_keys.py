"""Several verification keys by kid, from PEM files or a JSON Web Key Set, replaced while the service runs."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from structlog.testing import capture_logs

from service.callers import LOOK_FOR_A_KID_EVERY_S, Callers, Unauthenticated
from service.jwt_keys import LOOK_EVERY_S, MAX_FILE_BYTES, MAX_KEYS, KeyFiles
from tests.tokens import NOW, claims, jwk, jwks, private_pem, public_pem, signed

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY, OTHER_EC_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
LASTING = claims(exp=NOW + 1000)
LATER = NOW + LOOK_EVERY_S


def es256(key: Any = EC_KEY, **header: Any) -> str:
    """A token that outlives every look."""
    return signed(LASTING, key=key, algorithm="ES256", **header)


def refusal(callers: Callers, authorization: str, now: float = NOW) -> str:
    with pytest.raises(Unauthenticated) as caught:
        callers.identify(authorization, now=now)
    return caught.value.reason


def folder_of(folder: Path, **keys: Any) -> Path:
    """A folder with these keys and no others."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for kid, key in keys.items():
        (folder / f"{kid}.pem").write_text(public_pem(key))
    return folder


def set_of(folder: Path, **keys: Any) -> Path:
    """A JSON Web Key Set with these keys."""
    file = folder / "jwks.json"
    file.write_text(jwks(*(jwk(key, kid=kid) for kid, key in keys.items())))
    return file


@pytest.fixture(params=["folder", "set"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Puts keys by kid where they are read from."""
    if request.param == "folder":
        return lambda **keys: folder_of(tmp_path / "keys", **keys)
    return lambda **keys: set_of(tmp_path, **keys)


def callers_of(path: Path) -> Callers:
    return Callers(KeyFiles(path), cache_size=100)


class TestChosen:
    def test_the_kid_chooses_the_key_and_the_key_the_algorithm(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(r=RSA_KEY, e=EC_KEY, d=ED_KEY))
        by_kid = {"r": (RSA_KEY, "RS256"), "e": (EC_KEY, "ES256"), "d": (ED_KEY, "EdDSA")}
        for kid, (named, algorithm) in itertools.product(by_kid, by_kid.values()):
            token = signed(LASTING, key=named, algorithm=algorithm, kid=kid)
            if by_kid[kid][0] is named:
                assert callers.identify(token, now=NOW).user_id == 7
            else:
                assert f"not signed with {by_kid[kid][1]}" in refusal(callers, token)

    def test_of_several_keys_the_token_must_name_one(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(one=EC_KEY, two=OTHER_EC_KEY))
        assert "kid" in refusal(callers, es256())
        assert "kid" in refusal(callers, es256(kid="three"))
        assert "signature" in refusal(callers, es256(kid="two"))

    def test_an_only_key_need_not_be_named_but_not_misnamed_either(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(one=EC_KEY))
        assert callers.identify(es256(), now=NOW).user_id == 7
        assert callers.identify(es256(kid="one"), now=NOW).user_id == 7
        assert "kid" in refusal(callers, es256(kid="two"))

    def test_a_public_key_is_no_hmac_secret(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(one=EC_KEY))
        forged = signed(LASTING, key="x" * 32, kid="one")
        assert "not signed with ES256" in refusal(callers, forged)

    @pytest.mark.parametrize("kid", ["../one", "one.pem", "ONE", "", "one\x00", "é"])
    def test_a_kid_is_a_name_and_no_path(self, put: Callable[..., Path], kid: str) -> None:
        assert "kid" in refusal(callers_of(put(one=EC_KEY, two=OTHER_EC_KEY)), es256(kid=kid))


class TestReplaced:
    def test_a_new_key_is_found_as_soon_as_a_token_names_it(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(old=EC_KEY))
        callers.identify(es256(kid="old"), now=NOW)
        put(old=EC_KEY, new=OTHER_EC_KEY)
        token = es256(OTHER_EC_KEY, kid="new")
        assert "kid" in refusal(callers, token, NOW + LOOK_FOR_A_KID_EVERY_S / 2)
        assert callers.identify(token, now=NOW + LOOK_FOR_A_KID_EVERY_S).user_id == 7
        assert callers.identify(es256(kid="old"), now=NOW + LOOK_FOR_A_KID_EVERY_S).user_id == 7

    def test_what_a_key_has_verified_goes_with_it(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(old=EC_KEY, new=OTHER_EC_KEY))
        old, new = es256(kid="old"), es256(OTHER_EC_KEY, kid="new")
        for token in (old, new):
            callers.identify(token, now=NOW)
        put(new=OTHER_EC_KEY)
        assert callers.identify(old, now=LATER - 0.1).user_id == 7
        assert "kid" in refusal(callers, old, LATER)
        assert callers.identify(new, now=LATER).user_id == 7

    def test_another_key_of_the_same_name_replaces_it(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(one=EC_KEY))
        callers.identify(es256(kid="one"), now=NOW)
        put(one=OTHER_EC_KEY)
        assert "signature" in refusal(callers, es256(kid="one"), LATER)
        assert callers.identify(es256(OTHER_EC_KEY, kid="one"), now=LATER).user_id == 7

    def test_a_clock_that_steps_back_is_no_reason_to_look_late(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(one=EC_KEY))
        callers.identify(es256(kid="one"), now=NOW)
        put(one=OTHER_EC_KEY)
        assert "signature" in refusal(callers, es256(kid="one"), NOW - 3600)

    def test_keys_that_stay_keep_what_they_have_verified(self, put: Callable[..., Path]) -> None:
        callers = callers_of(put(one=EC_KEY))
        first = callers.identify(es256(kid="one"), now=NOW)
        put(one=EC_KEY)
        assert callers.identify(es256(kid="one"), now=LATER) is not first  # ES256 signs the same differently
        assert len(callers._verified) == 2

    def test_while_the_files_cannot_be_used_the_old_keys_stay_which_is_warned_of_once(
        self, put: Callable[..., Path]
    ) -> None:
        path = put(one=EC_KEY)
        callers = callers_of(path)
        token = es256(kid="one")
        file = path / "one.pem" if path.is_dir() else path
        whole = file.read_bytes()
        looks = itertools.count(1)

        def seen(content: bytes | None) -> list[str]:
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
            with capture_logs() as logs:
                for _ in range(3):
                    assert callers.identify(token, now=NOW + next(looks) * LOOK_EVERY_S).user_id == 7
            return [entry["reason"] for entry in logs if entry["log_level"] == "warning"]

        for broken in (whole[: len(whole) // 2], None):
            (reason,) = seen(broken)
            assert str(path) in reason
        assert seen(whole) == []
        for broken in (b"", b"\xff"):
            assert len(seen(broken)) == 1, "it is told again when it happens again"
            assert seen(whole) == []

    def test_a_file_that_was_half_written_is_read_when_it_is_whole(self, put: Callable[..., Path]) -> None:
        path = put(one=EC_KEY)
        callers = callers_of(path)
        put(one=EC_KEY, two=OTHER_EC_KEY)
        file = path / "two.pem" if path.is_dir() else path
        whole, stat = file.read_bytes(), file.stat()
        token = es256(OTHER_EC_KEY, kid="two")
        for content in (whole[:20], whole):
            file.write_bytes(content)
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a clock that has not gone on
            if content != whole:
                assert "kid" in refusal(callers, token, LATER)
        assert callers.identify(token, now=LATER + LOOK_FOR_A_KID_EVERY_S).user_id == 7


class TestRefusedAtTheStart:
    def refused(self, path: Path) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 the message is looked at by who calls
            KeyFiles(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_folder_without_a_key(self, tmp_path: Path) -> None:
        (tmp_path / "README").write_text("none")
        (tmp_path / ".half-written.pem").write_text("-----BEGIN")
        assert f"{tmp_path} holds 0 .pem files" in self.refused(tmp_path)

    def test_more_files_than_anybody_rotates(self, tmp_path: Path) -> None:
        for number in range(MAX_KEYS + 1):
            (tmp_path / f"{number}.pem").touch()
        assert f"holds {MAX_KEYS + 1} .pem files" in self.refused(tmp_path)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        assert "No such file" in self.refused(tmp_path / "nowhere")

    def test_what_would_be_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.pem")
        assert "pipe.pem is not a file" in self.refused(tmp_path)
        assert "pipe.pem is not a file" in self.refused(tmp_path / "pipe.pem")

    def test_what_is_too_large_to_be_keys(self, tmp_path: Path) -> None:
        (tmp_path / "jwks.json").write_bytes(b" " * (MAX_FILE_BYTES + 1))
        assert "larger than" in self.refused(tmp_path / "jwks.json")

    @pytest.mark.parametrize(
        "pem", [private_pem(EC_KEY), "", "\udcff", public_pem(ec.generate_private_key(ec.SECP384R1()))]
    )
    def test_a_file_of_the_folder_that_is_no_key_of_ours(self, tmp_path: Path, pem: str) -> None:
        folder_of(tmp_path / "keys", good=EC_KEY)
        (tmp_path / "keys" / "bad.pem").write_bytes(pem.encode(errors="surrogateescape"))
        told = self.refused(tmp_path / "keys")
        assert "bad.pem is" in told
        assert "PRIVATE" not in told

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("", "no JSON Web Key Set"),
            ("[]", "no JSON Web Key Set"),
            ("{}", "no JSON Web Key Set"),
            ('{"keys": {}}', "no JSON Web Key Set"),
            ('{"keys": [7]}', "no JSON Web Key Set"),
            ('{"keys": [], "keys": []}', "'keys' is given twice"),
            ('{"keys":' * 2000 + "[]" + "}" * 2000, "no JSON Web Key Set"),
            ('{"keys": ' + "[" * 40 + "]" * 40 + "}", "levels deep"),
            (jwks(), "has no key that verifies"),
            (jwks(*({"kty": "x"} for _ in range(MAX_KEYS + 1))), "keys;"),
            (jwks(jwk(EC_KEY)), "key number 1 has no kid"),
            (jwks(jwk(EC_KEY, kid=7)), "key number 1 has no kid"),
            (jwks(jwk(EC_KEY, kid="one"), jwk(ED_KEY, kid="one")), "'one' is there twice"),
            (jwks(jwk(EC_KEY, kid="one"), {"kty": "oct", "k": "c2VjcmV0", "kid": "two"}), "'two' is a symmetric key"),
            (jwks(jwk(EC_KEY, kid="one", d="c2VjcmV0")), "'one' is a private key"),
            (jwks(jwk(EC_KEY, kid="one", use="enc", d="c2VjcmV0")), "'one' is a private key"),
            (jwks(jwk(EC_KEY, kid="one", x="AAAA")), "'one' cannot be read"),
            (jwks(jwk(EC_KEY, kid="one", x=None)), "'one' cannot be read"),
            (jwks(jwk(EC_KEY, kid="one", x=7)), "'one' cannot be read"),
            (jwks(jwk(rsa.generate_private_key(65537, 1024), kid="one")), "'one' is an RSA key of 1024 bits"),
        ],
    )
    def test_a_set_that_is_none_or_has_a_key_that_does_not_belong_there(
        self, tmp_path: Path, content: str, told: str
    ) -> None:
        (tmp_path / "jwks.json").write_text(content)
        line = self.refused(tmp_path / "jwks.json")
        assert told in line
        assert "c2VjcmV0" not in line


@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "ES512"},
        {"crv": "P-384"},
        {"crv": ["P-256"]},
        {"kty": "AKP"},
        {"kty": None},
    ],
)
def test_keys_of_a_set_that_are_for_others_are_left_alone(tmp_path: Path, members: dict[str, Any]) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(jwks(jwk(OTHER_EC_KEY, **{"kid": "other", **members}), jwk(EC_KEY, kid="ours", use="sig")))
    callers = callers_of(file)
    assert callers.identify(es256(kid="ours"), now=NOW).user_id == 7
    assert "kid" in refusal(callers, es256(OTHER_EC_KEY, kid="other"))


def test_a_set_may_say_more_than_we_read(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    entry = jwk(ED_KEY, kid="one", alg="EdDSA", use="sig", key_ops=["verify"], x5c=["…"], issued=1)
    file.write_text(json.dumps({"keys": [entry], "of": "an issuer"}))
    token = signed(LASTING, key=ED_KEY, algorithm="EdDSA", kid="one")
    assert callers_of(file).identify(token, now=NOW).user_id == 7
