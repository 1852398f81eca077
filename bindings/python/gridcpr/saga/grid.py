"""The way to the grid service: HTTP and JSON over its socket, or over TLS with a certificate or a token."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from typing import Any, Dict, Iterator, Optional, Union
from urllib.parse import urlencode

from . import errors
from .session import Context, Session, chosen
from .url import Url

__all__ = ["Grid", "connect", "own_job"]

_CLASSES = {
    "usage": errors.BadParameter,
    "not-found": errors.DoesNotExist,
    "already-exists": errors.AlreadyExists,
    "gone": errors.IncorrectState,
    "in-use": errors.IncorrectState,
    "busy": errors.IncorrectState,
    "timed-out": errors.Timeout,
    "denied": errors.PermissionDenied,
    "unsupported": errors.NotImplemented,
}
_LOCAL = ("fork", "local", "any", "gridcpr", "")


class _Local(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _error(status: int, problem: Dict[str, Any], about: Any) -> errors.SagaException:
    kind, message = problem.get("kind", ""), problem.get("message", f"the grid answers {status}")
    if problem.get("hint"):
        message += f" ({problem['hint']})"
    if kind == "denied" and ("neither certificate nor token" in message or "token is not known" in message
                             or "revoked" in message):
        return errors.AuthenticationFailed(message, about)
    if kind == "denied" and "has no account here" in message:
        return errors.AuthorizationFailed(message, about)
    return _CLASSES.get(kind, errors.NoSuccess)(message, about)


class Grid:
    """A grid service, as one session reaches it. Every call is a connection of its own."""

    def __init__(self, address: str, session: Session) -> None:
        self.address = address
        self.session = session
        if address.startswith("unix:"):
            self.host, self.where = "localhost", address[5:]
        else:
            url = Url(address)
            self.host, self.where = url.authority(), url.authority()
        self._contexts = session.list_contexts()

    def url(self, path: str) -> Url:
        """The URL of a path of the name space."""
        url = Url(f"gridcpr://{self.host}/")
        url.set_path(path)
        return url

    def _context(self, kind: str) -> Optional[Context]:
        return next((context for context in self._contexts if context.get_attribute("Type") == kind), None)

    def _open(self, timeout: float) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return _Local(self.where, timeout)
        if self.address.startswith("http:"):
            return http.client.HTTPConnection(self.where, timeout=timeout)
        x509 = self._context("x509")
        token = self._context("token")
        holder = x509 or token
        believed = holder is not None and holder.attribute_exists("CertRepository")
        authority = holder.get_attribute("CertRepository") if holder and believed else None
        try:
            tls = ssl.create_default_context(cafile=authority)
            if x509 and x509.attribute_exists("UserCert"):
                key = x509.get_attribute("UserKey") if x509.attribute_exists("UserKey") else None
                tls.load_cert_chain(x509.get_attribute("UserCert"), key)
        except (OSError, ssl.SSLError) as error:
            text = f"the credentials of the session are no good: {error}"
            raise errors.AuthenticationFailed(text, self.session) from error
        return http.client.HTTPSConnection(self.where, timeout=timeout, context=tls)

    def _headers(self) -> Dict[str, str]:
        token = self._context("token")
        if token is None or not token.attribute_exists("UserPass"):
            return {}
        return {"Authorization": f"Bearer {token.get_attribute('UserPass')}"}

    def _send(self, method: str, path: str, body: Optional[Dict[str, Any]], about: Any, timeout: float,
              headers: Dict[str, str]) -> Any:
        connection = self._open(timeout)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json", **self._headers(), **headers})
            return connection, connection.getresponse()
        except (socket.timeout, TimeoutError) as error:
            connection.close()
            raise errors.Timeout(f"the grid at {self.address} did not answer in {timeout:g} s", about) from error
        except ssl.SSLError as error:
            connection.close()
            raise errors.AuthenticationFailed(f"the grid at {self.address} and we do not know each other: {error}",
                                              about) from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if "certificate" in str(error).lower():
                raise errors.AuthenticationFailed(f"the grid at {self.address}: {error}", about) from error
            raise errors.NoSuccess(f"the grid at {self.address} cannot be reached: {error}", about) from error

    def call(self, method: str, path: str, body: Optional[Dict[str, Any]] = None, about: Any = None,
             key: str = "") -> Any:
        """Sends a request and gives what is answered. With `key` a request that is repeated is done once."""
        headers = {"Idempotency-Key": key} if key else {}
        connection, answer = self._send(method, path, body, about, self.session.timeout, headers)
        try:
            data = answer.read()
        except (socket.timeout, TimeoutError) as error:
            raise errors.Timeout(f"the grid at {self.address} did not finish its answer", about) from error
        except (OSError, http.client.HTTPException) as error:
            raise errors.NoSuccess(f"the grid at {self.address} did not finish its answer: {error}", about) from error
        finally:
            connection.close()
        try:
            value = json.loads(data or b"null")
        except ValueError as error:
            raise errors.NoSuccess(f"the answer of {self.address} is not understood", about) from error
        if answer.status >= 400:
            raise _error(answer.status, value if isinstance(value, dict) else {}, about)
        return value

    def get(self, where: str, about: Any = None, **query: Any) -> Any:
        """Asks for something."""
        return self.call("GET", f"{where}?{urlencode(query)}" if query else where, about=about)

    def post(self, path: str, body: Dict[str, Any], about: Any = None, key: str = "") -> Any:
        """Has something done."""
        return self.call("POST", path, body, about, key)

    def pages(self, path: str, about: Any = None, **query: Any) -> Iterator[Dict[str, Any]]:
        """Everything that is in a list."""
        while True:
            page = self.get(path, about, **query)
            yield from page["items"]
            if not page.get("next"):
                return
            query["after"] = page["next"]

    def events(self, after: str = "", **query: Any) -> "Events":
        """Events as they happen."""
        if after:
            query["after"] = after
        connection, answer = self._send("GET", f"/v1/events/stream?{urlencode(query)}", None, None, 60.0, {})
        if answer.status >= 400:
            value = json.loads(answer.read() or b"{}")
            connection.close()
            raise _error(answer.status, value, None)
        return Events(connection, answer)


class Events:
    """A stream of events; ends when the service does, or says nothing for a minute."""

    def __init__(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        self._connection, self._answer = connection, answer

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        try:
            for line in self._answer:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return

    def close(self) -> None:
        """Ends it, also for who waits for the next one."""
        try:
            if self._connection.sock is not None:
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._connection.close()


def _sockets() -> Iterator[str]:
    yield "/run/gridcpr/cprd.sock"
    if os.environ.get("XDG_RUNTIME_DIR"):
        yield os.path.join(os.environ["XDG_RUNTIME_DIR"], "gridcpr/cprd.sock")
    yield os.path.expanduser("~/.local/state/gridcpr/cprd.sock")


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _begin(deadline: float) -> str:
    """Starts `cprd all` for this user, and waits until it answers."""
    program = shutil.which(os.environ.get("GRIDCPR_CPRD", "cprd"))
    if program is None:
        raise errors.BadParameter("no grid runs on this machine, and there is no cprd on PATH that could be started")
    subprocess.Popen([program, "all"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                     start_new_session=True)
    while time.monotonic() < deadline:
        for path in _sockets():
            if _answers(path):
                return f"unix:{path}"
        time.sleep(0.05)
    raise errors.NoSuccess(f"{program} all was started and does not answer")


def _address(url: Url, session: Session) -> str:
    """The address of the grid that a URL means."""
    scheme, text = url.get_scheme(), str(url)
    if scheme == "unix" or (not scheme and text.startswith("/")):
        return f"unix:{url.get_path()}"
    if scheme in ("https", "http") and url.get_port() > 0:
        return f"{scheme}://{url.authority()}"
    if scheme not in _LOCAL:
        raise errors.BadParameter(f"there is nothing here that manages jobs of {text!r}; use fork://localhost, "
                                  "unix:///PATH, https://HOST:PORT or an empty URL")
    if scheme == "gridcpr" and url.get_port() > 0:
        return f"https://{url.authority()}"
    if url.get_host() not in ("", "localhost"):
        raise errors.BadParameter(f"{text!r} names neither this machine nor a port of another")
    said = session.grid or os.environ.get("GRIDCPR_GRID", "") or chosen().get("grid", "")
    if said:
        return said if not said.startswith("/") else f"unix:{said}"
    for path in _sockets():
        if _answers(path):
            return f"unix:{path}"
    if scheme in ("fork", "local"):
        return _begin(time.monotonic() + session.timeout)
    raise errors.BadParameter("no grid is running on this machine; start one with `cprd all`, use fork://localhost, or "
                              "set GRIDCPR_GRID to where one is")


def own_job(address: str) -> Optional[int]:
    """Number of the job of a grid that this program is part of."""
    found = re.match(r"\[(.+)\]-\[([0-9]+)\]\Z", os.environ.get("SAGA_JOB_ID", ""))
    return int(found.group(2)) if found and found.group(1) == address else None


def connect(url: Union[str, Url], session: Session) -> Grid:
    """The grid that a URL means, as a session reaches it."""
    address = _address(Url(url), session)
    known = session._grids.get(address)
    if known is None:
        known = session._grids[address] = Grid(address, session)
    return known
