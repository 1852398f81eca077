"""Files put into a bucket of an S3 service, signed with AWS Signature Version 4.

`AWS_ENDPOINT_URL` says where the service is, `AWS_REGION` its region, `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`
who we are.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import os
from typing import Any
from urllib.parse import quote

from .errors import AuthenticationFailed, NoSuccess, PermissionDenied, Timeout
from .url import Url

__all__ = ["put"]


def _variable(name: str, about: Any) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise AuthenticationFailed(f"{name} is not set, and so nothing can be put into a bucket", about)
    return value


def put(to: Url, path: str, about: Any) -> None:
    """Puts the file at a path into a bucket, as `s3://BUCKET/KEY`."""
    access, secret = _variable("AWS_ACCESS_KEY_ID", about), _variable("AWS_SECRET_ACCESS_KEY", about)
    region = os.environ.get("AWS_REGION", "us-east-1")
    endpoint = Url(os.environ.get("AWS_ENDPOINT_URL", f"https://s3.{region}.amazonaws.com"))
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise NoSuccess(f"read {path}: {error.strerror}", about) from error
    now = datetime.datetime.now(datetime.timezone.utc)
    day, stamp = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    key = quote(f"/{to.get_host()}{to.get_path()}", safe="/-_.~")
    headers = {"host": endpoint.authority(), "x-amz-content-sha256": digest.hexdigest(), "x-amz-date": stamp}
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join(["PUT", key, "", lines, names, digest.hexdigest()])
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    signer = ("AWS4" + secret).encode()
    for part in (day, region, "s3", "aws4_request", text):
        signer = hmac.new(signer, part.encode(), hashlib.sha256).digest()
    headers["authorization"] = (f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, "
                                f"Signature={signer.hex()}")
    headers["content-length"] = str(size)
    kind = http.client.HTTPSConnection if endpoint.get_scheme() == "https" else http.client.HTTPConnection
    connection = kind(endpoint.authority(), timeout=60)
    try:
        with open(path, "rb") as file:
            connection.request("PUT", key, file, headers)
            answer = connection.getresponse()
            said = answer.read(1000).decode(errors="replace")
    except TimeoutError as error:
        raise Timeout(f"the bucket at {endpoint} did not answer", about) from error
    except (OSError, http.client.HTTPException) as error:
        raise NoSuccess(f"put {to}: {error}", about) from error
    finally:
        connection.close()
    if answer.status in (401, 403):
        raise PermissionDenied(f"put {to}: {answer.status} {said}", about)
    if answer.status >= 300:
        raise NoSuccess(f"put {to}: {answer.status} {said}", about)
