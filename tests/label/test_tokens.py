"""A server that asks who one is: a Keycloak realm of our own says whose tokens count."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pipelines.monailabel.process import Server

CLIENT = "monailabel-app"
STRANGER = rsa.generate_private_key(65537, 2048)


class Clinic(NamedTuple):
    """A server, and the key that its realm signs tokens with."""

    server: Server
    key: rsa.RSAPrivateKey

    def status(self, token: str | None, method: str = "GET", path: str = "/datastore/", **what: Any) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return requests.request(method, self.server.address + path, headers=headers, timeout=60, **what).status_code


@pytest.fixture(scope="module")
def clinic(serve: Callable[..., Server], drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """What Keycloak says of a realm; it takes no password."""
    key = rsa.generate_private_key(65537, 2048)
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    class Realm(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here = f"http://127.0.0.1:{self.server.server_port}/token"  # type: ignore[attr-defined]
            self._say(200, {"realm": "clinic", "public_key": base64.b64encode(der).decode(), "token_endpoint": here})

        def do_POST(self) -> None:
            self._say(401, {"error": "invalid_grant"})

        def _say(self, status: int, content: dict[str, str]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    realm = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Realm)
    threading.Thread(target=realm.serve_forever).start()
    studies = tmp_path_factory.mktemp("clinic") / "studies"
    shutil.copytree(drawn / "images", studies)
    uri = f"http://127.0.0.1:{realm.server_port}/realms/clinic"
    switched_on = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": uri}
    server = serve(studies, "--models", "amsam_isic", environment=switched_on)
    yield Clinic(server, key)
    server.stop()
    realm.shutdown()
    realm.server_close()


def claims(role: str = "monailabel-user", **others: Any) -> dict[str, Any]:
    known = {"preferred_username": "someone", "realm_access": {"roles": [role]}, "exp": time.time() + 60}
    return {name: value for name, value in {**known, **others}.items() if value is not ...}


def signed(key: Any, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **others: Any) -> str:
    return jwt.encode(claims(**others), key, algorithm, headers)


def by_hand(header: dict[str, Any], secret: bytes | None) -> str:
    """A token that no library would make: unsigned, or with a public key as the secret of a signature."""

    def packed(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    start = ".".join(packed(json.dumps(part).encode()) for part in (header, claims("monailabel-admin")))
    mark = b"" if secret is None else hmac.new(secret, start.encode(), hashlib.sha256).digest()
    return f"{start}.{packed(mark)}"


@pytest.mark.parametrize(
    "make",
    [
        lambda key: None,
        lambda key: "",
        lambda key: "rubbish",
        lambda key: "a.b.c",
        lambda key: "x" * 20_000,
        lambda key: signed(STRANGER, role="monailabel-admin"),
        lambda key: signed(STRANGER, headers={"jku": "http://127.0.0.1:9/keys", "x5u": "http://127.0.0.1:9/x"}),
        lambda key: signed("x" * 32, "HS256"),
        lambda key: by_hand({"alg": "none", "typ": "JWT"}, None),
        lambda key: by_hand({"alg": "None"}, None),
        lambda key: by_hand({"alg": "RS256"}, None),
        lambda key: by_hand({}, None),
        lambda key: by_hand({"alg": "HS256"}, public(key)),
        lambda key: signed(key)[:-10] + "AAAAAAAAAA",
        lambda key: signed(key, exp=time.time() - 120),
        lambda key: signed(key, exp=...),
        lambda key: signed(key, nbf=time.time() + 600),
        lambda key: signed(key, azp="another-app"),
        lambda key: signed(key, aud="another-app"),
        lambda key: signed(key, aud=["another-app", "account"], azp="another-app"),
        lambda key: signed(key, preferred_username=...),
        lambda key: signed(key, preferred_username=5),
        lambda key: signed(key, realm_access=...),
        lambda key: signed(key, realm_access=None),
        lambda key: signed(key, realm_access="monailabel-admin"),
        lambda key: signed(key, realm_access={"roles": "monailabel-admin"}),
        lambda key: signed(key, realm_access={"roles": [{}]}),
    ],
)
def test_a_token_that_does_not_count_is_answered_with_401(
    clinic: Clinic, make: Callable[[rsa.RSAPrivateKey], str | None]
) -> None:
    assert clinic.status(make(clinic.key)) == 401


def public(key: rsa.RSAPrivateKey) -> bytes:
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(der).decode()}\n-----END PUBLIC KEY-----".encode()


def test_whom_the_realm_knows_is_let_in_as_far_as_the_role_goes(clinic: Clinic) -> None:
    image = min(path.stem for path in clinic.server.studies.iterdir() if path.suffix in (".png", ".jpg"))
    for token in (signed(clinic.key), signed(clinic.key, azp=CLIENT), signed(clinic.key, aud=["account", CLIENT])):
        assert clinic.status(token) == 200
    assert clinic.status(token, "POST", f"/infer/amsam_isic?image={image}&output=json") == 200
    for method, path in (("DELETE", f"/datastore/image?id={image}"), ("POST", "/train/x"), ("PUT", "/datastore/image")):
        assert clinic.status(token, method, path) == 403  # that takes another role


def test_every_address_asks_who_one_is(clinic: Clinic) -> None:
    described = requests.get(f"{clinic.server.address}/openapi.json", timeout=60).json()["paths"]
    asked = [(method.upper(), path) for path, methods in described.items() for method in methods]
    asked += [("GET", "/ohif/"), ("POST", "/infer/wsi/x"), ("POST", "/train/"), ("POST", "/scoring/")]
    asked = [(method, re.sub("{.*}", "x", path)) for method, path in asked if not path.startswith("/auth")]
    wrong = [one for one in asked if clinic.status(None, *one) != 401]
    assert len(asked) > 25
    assert wrong == []


def test_a_wrong_password_is_answered_with_401(clinic: Clinic) -> None:
    form = {"username": "someone", "password": "guess", "grant_type": "password"}
    answer = requests.post(f"{clinic.server.address}/auth/token", data=form, timeout=60)
    assert (answer.status_code, answer.json()["detail"]) == (401, "the realm does not know this user and password")
