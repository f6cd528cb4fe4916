from __future__ import annotations

import base64
import itertools
import json
import re
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from locks.trial import PREFIX as HEALTH_PREFIX
from service.callers import MAX_HEADER_LENGTH, Caller, Callers, Unauthenticated, check_scope, sign_token
from service.entering import lock_name
from service.jwt_keys import OneKey, public_key, secret_key
from service.strict_json import MAX_LEVELS
from tests.tokens import (
    NOW,
    SECRET,
    claims,
    hs256,
    private_pem,
    public_pem,
    raw_token,
    signed,
    with_secret,
)


def refusal(callers: Callers, authorization: str | None, now: float = NOW) -> str:
    with pytest.raises(Unauthenticated) as caught:
        callers.identify(authorization, now=now)
    return caught.value.reason


RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
KEYS = {"RS256": RSA_KEY, "ES256": EC_KEY, "EdDSA": ED_KEY}


class TestWhoIsNamed:
    def test_a_good_token_names_its_user_and_scopes(self) -> None:
        caller = with_secret().identify(signed(claims(scope="locks monitor")), now=NOW)
        assert caller == Caller(7, frozenset({"locks", "monitor"}))

    def test_a_token_without_scope_names_a_user_who_may_nothing_more(self) -> None:
        assert with_secret().identify(signed(claims()), now=NOW).scopes == frozenset()

    def test_an_unknown_scope_is_carried(self) -> None:
        assert with_secret().identify(signed(claims(scope="brewing")), now=NOW).may("brewing")

    def test_spaces_around_scopes_grant_nothing(self) -> None:
        assert with_secret().identify(signed(claims(scope="  locks  ")), now=NOW).scopes == {"locks"}

    def test_only_a_space_parts_scopes(self) -> None:
        assert with_secret().identify(signed(claims(scope="locks\toperator")), now=NOW).scopes == {"locks\toperator"}

    def test_an_operator_may_monitor_and_a_monitor_may_not_operate(self) -> None:
        operator = Caller(1, frozenset({"operator"}))
        monitor = Caller(1, frozenset({"monitor"}))
        assert operator.may("operator")
        assert operator.may("monitor")
        assert not operator.may("locks")
        assert monitor.may("monitor")
        assert not monitor.may("operator")

    @pytest.mark.parametrize(
        ("scope", "reached"),
        [
            ("locks", {"jobs:1", "job", "appointments:1", "APPOINTMENT:1", "chargeonce"}),
            ("locks:jobs:", {"jobs:1"}),
            ("locks:job", {"jobs:1", "job"}),
            ("locks:jobs: locks:appointments:", {"jobs:1", "appointments:1"}),
            ("locks:a", {"appointments:1"}),
            ("locks:c", {"chargeonce"}),
            ("locks:appointment: locks:chargeonce:", set()),
            ("locks: locks:%2A locks:* locks:^", set()),
            ("service monitor operator", set()),
        ],
    )
    def test_a_scope_reaches_the_names_that_begin_so_and_never_the_services_own(
        self, scope: str, reached: set[str]
    ) -> None:
        names = {"jobs:1", "job", "appointments:1", "appointment:1", "APPOINTMENT:1", "chargeonce", "chargeonce:audit"}
        caller = with_secret().identify(signed(claims(scope=scope)), now=NOW)
        assert {name for name in names if caller.reaches(name)} == reached
        assert reached == set() or caller.may("locks")

    @pytest.mark.parametrize("scope", ["", "locks:", "lock", "locksmith", "LOCKS:jobs:", "operator"])
    def test_what_is_no_scope_of_locks_has_no_leases(self, scope: str) -> None:
        assert not with_secret().identify(signed(claims(scope=scope)), now=NOW).may("locks")

    def test_the_locks_that_the_service_takes_itself_have_reserved_names(self) -> None:
        caller = Caller(1, frozenset({"locks"}))
        assert not caller.reaches(lock_name(42))
        assert not caller.reaches(f"{HEALTH_PREFIX}x")

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
    def test_the_scheme_is_read_in_any_case(self, scheme: str) -> None:
        token = signed(claims()).removeprefix("Bearer ")
        assert with_secret().identify(f"{scheme} {token}", now=NOW).user_id == 7

    @pytest.mark.parametrize("subject", ["1", "42", str(2**63 - 1)])
    def test_a_user_id_is_a_positive_bigint(self, subject: str) -> None:
        assert with_secret().identify(signed(claims(sub=subject)), now=NOW).user_id == int(subject)

    @pytest.mark.parametrize("algorithm", KEYS)
    def test_a_public_key_verifies_the_algorithm_of_its_kind(self, algorithm: str) -> None:
        callers = Callers(OneKey(public_key(public_pem(KEYS[algorithm]))), cache_size=10)
        authorization = signed(claims(), key=KEYS[algorithm], algorithm=algorithm)
        assert callers.identify(authorization, now=NOW).user_id == 7

    def test_a_public_key_on_one_line_with_written_line_ends_is_read(self) -> None:
        callers = Callers(OneKey(public_key(public_pem(EC_KEY).replace("\n", "\\n"))), cache_size=10)
        assert callers.identify(signed(claims(), key=EC_KEY, algorithm="ES256"), now=NOW).user_id == 7

    def test_what_sign_token_writes_is_accepted(self) -> None:
        token = sign_token(SECRET, user_id=9, scopes=["service", "locks"], ttl_s=60, now=NOW)
        callers = with_secret()
        assert callers.identify(f"Bearer {token}", now=NOW + 59.9) == Caller(9, frozenset({"service", "locks"}))
        assert "expired" in refusal(callers, f"Bearer {token}", NOW + 60)

    def test_a_signed_token_lasts_no_shorter_than_it_was_asked_to(self) -> None:
        token = sign_token(SECRET, user_id=9, scopes=[], ttl_s=0.5, now=NOW + 0.9)
        assert with_secret().identify(f"Bearer {token}", now=NOW + 1.39).user_id == 9


class TestRefused:
    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Basic dXNlcjpwYXNz",
            "Bearerabc.def.ghi",
            "Bearer abc",
            "Bearer a.b.c",
            "Bearer a.b.c d",
            "Bearer ..",
            "Bearer \udcff.a.b",
            "Bearer ä.a.b",
            " Bearer a.b.c",
        ],
    )
    def test_what_is_not_a_token(self, authorization: str | None) -> None:
        assert refusal(with_secret(), authorization)

    def test_a_token_with_anything_around_it(self) -> None:
        good = signed(claims())
        for bad in (good + "\n", good + ".", good + ", x", good + "\x00", "\n" + good, good.replace(" ", "\t")):
            assert refusal(with_secret(), bad)

    def test_another_secret(self) -> None:
        assert "signature" in refusal(with_secret(), signed(claims(), key=SECRET[::-1]))

    def test_a_changed_payload(self) -> None:
        header, _, signature = signed(claims()).split(".")
        payload = base64.urlsafe_b64encode(json.dumps(claims(sub="8")).encode()).rstrip(b"=").decode()
        assert "signature" in refusal(with_secret(), f"{header}.{payload}.{signature}")

    @pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", ""])
    def test_no_algorithm(self, algorithm: str) -> None:
        header = json.dumps({"alg": algorithm, "typ": "JWT"}).encode()
        payload = json.dumps(claims()).encode()
        for callers in (with_secret(), Callers(OneKey(public_key(public_pem(EC_KEY))), cache_size=1)):
            assert refusal(callers, raw_token(header, payload, lambda _: b""))
            assert refusal(callers, raw_token(header, payload, hs256(SECRET.encode())))

    @pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
    def test_another_hmac_with_the_right_secret(self, algorithm: str) -> None:
        authorization = signed(claims(), key=SECRET * 2, algorithm=algorithm)
        assert "HS256" in refusal(Callers(OneKey(secret_key(SECRET * 2)), cache_size=1), authorization)

    @pytest.mark.parametrize("algorithm", KEYS)
    def test_a_public_key_used_as_an_hmac_secret(self, algorithm: str) -> None:
        pem = public_pem(KEYS[algorithm])
        callers = Callers(OneKey(public_key(pem)), cache_size=10)
        header = json.dumps({"alg": "HS256", "typ": "JWT"}).encode()
        payload = json.dumps(claims()).encode()
        for secret in (pem, pem.strip(), pem.replace("\n", "\\n")):
            assert algorithm in refusal(callers, raw_token(header, payload, hs256(secret.encode())))

    @pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
    def test_another_algorithm_of_the_same_key(self, algorithm: str) -> None:
        callers = Callers(OneKey(public_key(public_pem(RSA_KEY))), cache_size=10)
        assert "RS256" in refusal(callers, signed(claims(), key=RSA_KEY, algorithm=algorithm))

    def test_a_header_over_8_kib_even_with_a_good_token(self) -> None:
        authorization = signed(claims(scope="x" * MAX_HEADER_LENGTH))
        assert "longer" in refusal(with_secret(), authorization)

    def test_a_header_of_8_kib_is_still_read(self) -> None:
        authorization = signed(claims()).ljust(MAX_HEADER_LENGTH)
        assert with_secret().identify(authorization, now=NOW).user_id == 7
        assert "longer" in refusal(with_secret(), authorization + " ")

    @pytest.mark.parametrize(
        "subject",
        [
            None, 7, 7.0, True, "", "0", "-7", "+7", "07", " 7", "7 ", "7\n", "7.0", "1e3", "0x7", "7_0",
            "seven", "٧", "７", str(2**63), "9" * 19, "9" * 5000, ["7"], {},
        ],
    )  # fmt: skip
    def test_a_sub_that_is_no_user_id(self, subject: Any) -> None:
        payload = {name: value for name, value in (claims() | {"sub": subject}).items() if value is not None}
        authorization = raw_token(b'{"alg":"HS256"}', json.dumps(payload).encode(), hs256(SECRET.encode()))
        assert "sub" in refusal(with_secret(), authorization)

    @pytest.mark.parametrize("scope", [7, ["locks"], {"locks": True}, False, None])
    def test_a_scope_that_is_no_string(self, scope: Any) -> None:
        assert "scope" in refusal(with_secret(), signed({**claims(), "scope": scope}))

    def test_no_exp(self) -> None:
        assert "exp" in refusal(with_secret(), signed(claims(exp=None)))

    @pytest.mark.parametrize("value", ["1700000060", True, [1], None, {}])
    @pytest.mark.parametrize("claim", ["exp", "nbf"])
    def test_a_time_that_is_no_number(self, claim: str, value: Any) -> None:
        payload = json.dumps(claims() | {claim: value}).encode()
        assert claim in refusal(with_secret(), raw_token(b'{"alg":"HS256"}', payload, hs256(SECRET.encode())))

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
    def test_a_time_that_never_comes(self, number: str) -> None:
        payload = f'{{"sub":"7","exp":{number}}}'.encode()
        assert refusal(with_secret(), raw_token(b'{"alg":"HS256"}', payload, hs256(SECRET.encode())))

    @pytest.mark.parametrize("late", [0.0, 0.001, 1e9])
    def test_an_expired_token_from_the_very_moment(self, late: float) -> None:
        assert "expired" in refusal(with_secret(), signed(claims(exp=NOW)), NOW + late)

    def test_a_token_before_its_nbf(self) -> None:
        authorization = signed(claims(nbf=NOW + 10))
        callers = with_secret()
        assert "not valid yet" in refusal(callers, authorization, NOW + 9.9)
        assert callers.identify(authorization, now=NOW + 10).user_id == 7

    def test_a_token_for_a_named_audience(self) -> None:
        assert "audience" in refusal(with_secret(), signed(claims(aud="another service")))

    @pytest.mark.parametrize("payload", [b"", b"7", b"[]", b'"x"', b"null", b"{", b"\xff", b"[" * 4000])
    def test_signed_claims_that_are_no_object(self, payload: bytes) -> None:
        assert "claims" in refusal(with_secret(), raw_token(b'{"alg":"HS256"}', payload, hs256(SECRET.encode())))

    @pytest.mark.parametrize("levels", [MAX_LEVELS, 100, 985, 1000, 1020, 1100, 2900])
    @pytest.mark.parametrize("brackets", ["[]", "{}"])
    def test_claims_or_a_header_that_are_nested_deeper_than_any_of_ours(self, brackets: str, levels: int) -> None:
        begin, end = ("[", "]") if brackets == "[]" else ('{"a":', "}")
        levels = min(levels, 5800 // len(begin + end))  # as many as a header of 8 KiB has room for
        nested = f"{begin * levels}7{end * levels}"
        good_header, good_payload = b'{"alg":"HS256"}', f'{{"sub":"7","exp":{NOW + 60}}}'.encode()
        payload = f'{{"sub":"7","exp":{NOW + 60},"more":{nested}}}'.encode()
        header = f'{{"alg":"HS256","more":{nested}}}'.encode()
        sign = hs256(SECRET.encode())
        assert "claims" in refusal(with_secret(), raw_token(good_header, payload, sign))
        assert "header" in refusal(with_secret(), raw_token(header, good_payload, sign))
        assert with_secret().identify(raw_token(good_header, good_payload, sign), now=NOW).user_id == 7

    @pytest.mark.parametrize(
        "payload",
        [
            '{"sub":"8","sub":"7","exp":EXP}',
            '{"sub":"7","scope":"operator","exp":EXP,"scope":""}',
            '{"sub":"7","exp":EXP,"\\u0073ub":"7"}',
            '{"sub":"7","exp":EXP,"more":[{"a":1,"a":1}]}',
        ],
    )
    def test_claims_that_say_a_key_twice(self, payload: str) -> None:
        text = payload.replace("EXP", str(NOW + 60)).encode()
        assert "claims" in refusal(with_secret(), raw_token(b'{"alg":"HS256"}', text, hs256(SECRET.encode())))

    def test_a_header_that_says_a_key_twice(self) -> None:
        header, payload = b'{"alg":"none","alg":"HS256"}', json.dumps(claims()).encode()
        assert "header" in refusal(with_secret(), raw_token(header, payload, hs256(SECRET.encode())))

    @pytest.mark.parametrize("kid", [7, None, ["one"], {}, True])
    def test_a_kid_that_is_no_string(self, kid: Any) -> None:
        header, payload = json.dumps({"alg": "HS256", "kid": kid}).encode(), json.dumps(claims()).encode()
        authorization = raw_token(header, payload, hs256(SECRET.encode()))
        if kid is None:
            assert "malformed" in refusal(with_secret(), authorization)
        else:
            assert "kid" in refusal(with_secret(), authorization)

    @pytest.mark.parametrize("name", ["kid", "typ", "cty", "jku", "x5u"])
    def test_what_else_a_header_says_changes_nothing(self, name: str) -> None:
        authorization = signed(claims(), **{name: "https://127.0.0.1:1/keys"})
        assert with_secret().identify(authorization, now=NOW).user_id == 7

    def test_another_spelling_of_the_same_signature(self) -> None:
        good = signed(claims())
        last = good[-1]  # 32 bytes are 43 signs, the last of which has two bits that say nothing
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        respelt = good[:-1] + alphabet[alphabet.index(last) ^ 1]
        for bad in (respelt, good + "=", good + "==", good.replace(".", "=.", 1)):
            assert refusal(with_secret(), bad)

    def test_the_reason_never_shows_the_token(self) -> None:
        authorization = signed(claims(sub="zzz-secret-zzz", exp=NOW - 1))
        assert "zzz" not in refusal(with_secret(), authorization)


class TestMeantForUs:
    @pytest.mark.parametrize("audience", ["us", ["us"], ["others", "us"]])
    def test_the_audience_must_have_our_name_in_it(self, audience: Any) -> None:
        ours = with_secret(audience="us")
        assert ours.identify(signed(claims(aud=audience)), now=NOW).user_id == 7

    @pytest.mark.parametrize(
        "audience", [None, "", "US", "us ", "them", "us them", [], ["them"], [["us"]], {"us": 1}, 7, True]
    )
    def test_who_is_not_named_refuses(self, audience: Any) -> None:
        payload = json.dumps(claims(aud=audience)).encode()
        authorization = raw_token(b'{"alg":"HS256"}', payload, hs256(SECRET.encode()))
        assert "audience" in refusal(with_secret(audience="us"), authorization)

    @pytest.mark.parametrize("issuer", [None, "", "https://issuer/", ["https://issuer"], 7])
    def test_who_else_has_issued_it_is_refused(self, issuer: Any) -> None:
        payload = json.dumps(claims(iss=issuer)).encode()
        authorization = raw_token(b'{"alg":"HS256"}', payload, hs256(SECRET.encode()))
        assert "issuer" in refusal(with_secret(issuer="https://issuer"), authorization)

    def test_our_issuer_is_taken_and_without_one_any(self) -> None:
        authorization = signed(claims(iss="https://issuer"))
        assert with_secret(issuer="https://issuer").identify(authorization, now=NOW).user_id == 7
        assert with_secret().identify(authorization, now=NOW).user_id == 7

    def test_what_sign_token_writes_is_meant_for_us(self) -> None:
        token = sign_token(SECRET, user_id=9, scopes=[], ttl_s=60, now=NOW, audience="us", issuer="we")
        assert with_secret(audience="us", issuer="we").identify(f"Bearer {token}", now=NOW).user_id == 9

    def test_the_leeway_is_for_the_end_and_for_the_beginning(self) -> None:
        authorization = signed(claims(exp=NOW + 60, nbf=NOW))
        exact, lenient = with_secret(), with_secret(leeway_s=5.0)
        for _ in ("verified", "remembered"):
            assert lenient.identify(authorization, now=NOW - 5).user_id == 7
            assert lenient.identify(authorization, now=NOW + 64.9).user_id == 7
        assert "not valid yet" in refusal(lenient, authorization, NOW - 5.1)
        assert "expired" in refusal(lenient, authorization, NOW + 65)
        assert "not valid yet" in refusal(exact, authorization, NOW - 0.1)
        assert "expired" in refusal(exact, authorization, NOW + 60)


class TestRemembering:
    def test_one_token_is_remembered_once_however_its_header_is_spelt(self) -> None:
        callers = with_secret()
        token = signed(claims()).removeprefix("Bearer ")
        for scheme, end in itertools.product(("Bearer ", "bearer ", "BEARER   "), ("", "  ")):
            callers.identify(f"{scheme}{token}{end}", now=NOW)
        assert list(callers._verified) == [token]

    def test_a_remembered_token_is_not_verified_again(self) -> None:
        callers = with_secret()
        authorization = signed(claims())
        assert callers.identify(authorization, now=NOW) is callers.identify(authorization, now=NOW + 1)

    def test_a_remembered_token_expires_too(self) -> None:
        callers = with_secret()
        authorization = signed(claims())
        callers.identify(authorization, now=NOW)
        assert "expired" in refusal(callers, authorization, NOW + 60)
        assert not callers._verified

    def test_a_remembered_token_is_not_valid_before_its_nbf_when_the_clock_steps_back(self) -> None:
        callers = with_secret()
        authorization = signed(claims(nbf=NOW))
        callers.identify(authorization, now=NOW)
        assert "not valid yet" in refusal(callers, authorization, NOW - 1)

    def test_no_more_than_cache_size_are_remembered_and_the_oldest_goes(self) -> None:
        callers = with_secret(cache_size=3)
        tokens = [signed(claims(sub=str(user_id))) for user_id in range(1, 6)]
        for authorization in tokens:
            callers.identify(authorization, now=NOW)
        assert list(callers._verified) == [each.removeprefix("Bearer ") for each in tokens[2:]]
        assert [callers.identify(each, now=NOW).user_id for each in tokens] == [1, 2, 3, 4, 5]

    def test_a_cache_of_no_size_remembers_nothing(self) -> None:
        callers = with_secret(cache_size=0)
        assert callers.identify(signed(claims()), now=NOW).user_id == 7
        assert not callers._verified

    def test_refused_tokens_are_not_remembered(self) -> None:
        callers = with_secret()
        for authorization in (signed(claims(exp=NOW)), signed(claims(nbf=NOW + 1)), signed(claims(sub="0")), "x"):
            refusal(callers, authorization)
        assert not callers._verified

    def test_a_forged_neighbour_of_a_remembered_token_is_refused(self) -> None:
        callers = with_secret()
        authorization = signed(claims())
        callers.identify(authorization, now=NOW)
        head, signature = authorization.rsplit(".", 1)
        for forged in (f"{head}.", f"{head}.{signature[:-1]}", f"{head}.{signature[::-1]}"):
            assert refusal(callers, forged)

    def test_evicting_stays_cheap_however_many_are_remembered(self) -> None:
        small, large = with_secret(cache_size=100), with_secret(cache_size=50_000)
        verified = small._verify(signed(claims()).removeprefix("Bearer "), NOW)
        for number in range(50_000):
            large._remember(str(number), verified)

        def cost(callers: Callers) -> float:
            started = time.perf_counter()
            for number in range(5_000):
                callers._remember(f"another {number}", verified)
            return time.perf_counter() - started

        # A plain dict walks over its deleted entries: hundreds of times, not a few times, the cost.
        assert min(cost(large) for _ in range(3)) < 20 * min(cost(small) for _ in range(3)) + 0.05


class TestKeys:
    @pytest.mark.parametrize(
        "pem",
        [
            "",
            "no key",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "\udcff",
            private_pem(EC_KEY),
            public_pem(rsa.generate_private_key(65537, 1024)),
            public_pem(ec.generate_private_key(ec.SECP384R1())),
            public_pem(ec.generate_private_key(ec.SECP256K1())),
            public_pem(ed448.Ed448PrivateKey.generate()),
        ],
        ids=[
            "empty", "text", "broken", "surrogate", "private", "rsa-1024", "p-384", "secp256k1", "ed448",
        ],
    )  # fmt: skip
    def test_a_public_key_that_cannot_serve_is_named_in_one_line(self, pem: str) -> None:
        with pytest.raises(ValueError, match="key") as caught:
            public_key(pem)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("secret", ["short", "x" * 31, public_pem(EC_KEY)], ids=["short", "31", "pem"])
    def test_a_secret_that_cannot_serve_is_refused(self, secret: str) -> None:
        with pytest.raises(ValueError, match=r"must be 32 bytes|another kind"):
            secret_key(secret)
        with pytest.raises(ValueError, match=r"must be 32 bytes|another kind"):
            sign_token(secret, user_id=7, scopes=[], ttl_s=60, now=NOW)

    @pytest.mark.parametrize("scope", ["service", "locks", "monitor", "operator", "locks:jobs:", "locks:a/b.c_d-"])
    def test_a_scope_that_opens_something(self, scope: str) -> None:
        check_scope(scope)

    @pytest.mark.parametrize(
        ("scope", "told"),
        [
            ("lock", "there is no scope 'lock'"),
            ("Locks", "there is no scope"),
            ("admin", "service, locks, monitor, operator and locks:PREFIX"),
            ("", "there is no scope"),
            ("locks:", "has no PREFIX"),
            ("locks:*", "has no PREFIX"),
            ("locks:" + "x" * 201, "has no PREFIX"),
            ("locks:appointment:", "reaches nothing"),
            ("locks:chargeonce:audit", "reaches nothing"),
        ],
    )
    def test_a_scope_that_opens_nothing_is_told(self, scope: str, told: str) -> None:
        with pytest.raises(ValueError, match=re.escape(told)):
            check_scope(scope)

    @pytest.mark.parametrize("user_id", [0, -1, 2**63])
    def test_no_token_is_signed_for_a_user_id_that_would_be_refused(self, user_id: int) -> None:
        with pytest.raises(ValueError, match="user id"):
            sign_token(SECRET, user_id=user_id, scopes=[], ttl_s=60, now=NOW)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
ANY_CALLERS = (
    with_secret(),
    *(Callers(OneKey(public_key(public_pem(key))), cache_size=10) for key in KEYS.values()),
)


def only_unauthenticated(authorization: str, now: float = NOW) -> None:
    for callers in ANY_CALLERS:
        with pytest.raises(Unauthenticated):
            callers.identify(authorization, now=now)


class TestGarbage:
    @given(st.text())
    def test_any_text(self, text: str) -> None:
        only_unauthenticated(text)
        only_unauthenticated("Bearer " + text)

    @given(st.text("abcXYZ019-_=.+/~", max_size=300))
    def test_any_text_of_token_characters(self, text: str) -> None:
        only_unauthenticated("Bearer " + text)

    @given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=300))
    def test_any_bytes_in_three_parts(self, header: bytes, payload: bytes, signature: bytes) -> None:
        only_unauthenticated(raw_token(header, payload, lambda _: signature))

    @given(
        header=st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "x5c"]), JSON_VALUES),
        algorithm=st.sampled_from(["HS256", "RS256", "ES256", "EdDSA", "none", None]),
        payload=JSON_VALUES,
        signature=st.binary(max_size=80),
    )
    def test_any_header_and_claims_with_a_forged_signature(
        self, header: dict[str, Any], algorithm: str | None, payload: Any, signature: bytes
    ) -> None:
        if algorithm is not None:
            header["alg"] = algorithm
        only_unauthenticated(raw_token(json.dumps(header).encode(), json.dumps(payload).encode(), lambda _: signature))

    @given(
        st.dictionaries(
            st.sampled_from(["sub", "exp", "nbf", "iat", "scope", "aud", "iss", "jti"]),
            JSON_VALUES | st.just("7") | st.just(NOW + 60),
        )
    )
    def test_any_claims_with_a_good_signature_name_a_user_or_nobody(self, payload: dict[str, Any]) -> None:
        authorization = raw_token(b'{"alg":"HS256"}', json.dumps(payload).encode(), hs256(SECRET.encode()))
        try:
            caller = with_secret().identify(authorization, now=NOW)
        except Unauthenticated:
            return
        assert str(caller.user_id) == payload["sub"]
        assert payload["exp"] > NOW

    @given(st.binary(max_size=200))
    def test_any_bytes_with_a_good_signature(self, payload: bytes) -> None:
        assert refusal(with_secret(), raw_token(b'{"alg":"HS256"}', payload, hs256(SECRET.encode())))
