"""The job service (SAGA Core, class job_service; SAGA CPR, class cpr_job_service)."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from typing import Any, Dict, List, Optional, Tuple, Union

from .base import SagaObject
from .errors import BadParameter, DoesNotExist, NoSuccess, SagaException
from .grid import Grid, connect
from .job import OVER, CprJob
from .job_description import CprJobDescription, JobDescription
from .session import Session
from .streams import InputStream, OutputStream
from .tasks import asynchronous
from .url import Url

__all__ = ["CprJobService", "cpr_job_service"]

_DESCRIPTION = "SAGA_JOB_DESCRIPTION"
_ID = re.compile(r"\[(.+)\]-\[([0-9]+)\]\Z")


def _described(description: Optional[JobDescription]) -> Optional[Dict[str, Any]]:
    return None if description is None else dict(description._values())


def _description(values: Optional[Dict[str, Any]]) -> Optional[CprJobDescription]:
    if values is None:
        return None
    description = CprJobDescription()
    description._values().update(values)
    return description


def spec_of(grid: Grid, description: CprJobDescription, start: Optional[CprJobDescription],
            recovery: Optional[CprJobDescription], about: Any) -> Dict[str, Any]:
    """The job of a description as the grid takes it, with what programs need to know that meet it later."""
    nodes = grid.get("/v1/nodes", about)["items"]
    spec = description._spec(nodes)
    description._cpr(spec, grid.url)
    # What stands for the job is filled in by the grid, in all of the environment; here it is meant as it is.
    both = json.dumps({"start": _described(start), "recovery": _described(recovery)}).replace("#", "\\u0023")
    spec["environment"].update({_DESCRIPTION: both, "SAGA_JOB_ID": f"[{grid.address}]-[#JobID#]"})
    return spec


class CprJobService(SagaObject):
    """What manages jobs: a grid, by its URL.

    Empty: the grid that `GRIDCPR_GRID` names, that was chosen with `cpr context`, or that runs on this machine.
    `fork://localhost`: the same, and where none runs on this machine one is started for this user. `unix:///PATH` and
    `https://HOST:PORT`: that one."""

    TYPE = "CprJobService"

    def __init__(self, rm: Union[str, Url] = "", session: Optional[Session] = None) -> None:
        SagaObject.__init__(self, session)
        self._grid = connect(rm, self.get_session())
        try:
            self._grid.get("/v1/jobs", self, limit=1)
        except NoSuccess as error:
            raise BadParameter(f"{str(rm)!r} manages no jobs: {error}", self) from error

    def get_url(self) -> Url:
        """The URL of the grid."""
        return Url(self._grid.address)

    @asynchronous
    def create_job(self, jd_start: JobDescription, jd_rec: Optional[JobDescription] = None) -> CprJob:
        """A New job; with `jd_rec` another description for when it is recovered. Both are copied. BadParameter for an
        attribute that is no good, which it names."""
        copies: List[Optional[CprJobDescription]] = []
        for what, given in (("description", jd_start), ("recovery description", jd_rec)):
            if given is None and what != "description":
                copies.append(None)
                continue
            if not isinstance(given, JobDescription):
                raise BadParameter(f"the {what} is none: {given!r}", self)
            copy = _description(given._values())
            assert copy is not None
            try:
                copy._check()
            except SagaException as error:
                raise type(error)(f"the {what} is no good: {error}", given) from error
            copies.append(copy)
        start, recovery = copies
        assert start is not None
        spec = spec_of(self._grid, start, start, recovery, self)
        if start.get_attribute("Interactive") == "True":
            self._interactive(start, spec)
        return CprJob(self, start, recovery, spec)

    def _interactive(self, start: CprJobDescription, spec: Dict[str, Any]) -> None:
        """Has a job read from a pipe with a name, and write to files."""
        taken = [key for key in ("Input", "Output", "Error") if start.attribute_exists(key)]
        if taken or "units" in spec:
            raise BadParameter(f"Interactive: impossible with {', '.join(taken) or 'several processes'}", self)
        directory = spec["directory"]
        try:
            place = tempfile.mkdtemp(prefix=".saga-", dir=directory)
            os.mkfifo(os.path.join(place, "stdin"), 0o600)
        except OSError as error:
            raise BadParameter(f"Interactive: impossible in {directory}: {error.strerror}", self) from error
        paths = {name: os.path.join(place, name.lower()) for name in ("STDIN", "STDOUT", "STDERR")}
        spec["environment"].update({f"SAGA_STREAM_{name}": path for name, path in paths.items()})
        words = f'exec <"$SAGA_STREAM_STDIN" >>"$SAGA_STREAM_STDOUT" 2>>"$SAGA_STREAM_STDERR"; exec "$@"'
        spec["command"] = ["/bin/sh", "-c", words, "saga", *spec["command"]]
        spec["output"] = os.path.join(place, "output")

    @asynchronous
    def run_job(self, commandline: str, host: str = "") -> Tuple[CprJob, InputStream, OutputStream, OutputStream]:
        """Runs a command line, on a host where one is named; gives the job with its three streams."""
        try:
            words = shlex.split(commandline)
        except ValueError as error:
            raise BadParameter(f"{commandline!r} is no command line: {error}", self) from error
        if not words:
            raise BadParameter("the command line is empty", self)
        description = CprJobDescription()
        description.set_attribute("Executable", words[0])
        description.set_vector_attribute("Arguments", words[1:])
        description.set_attribute("Interactive", "True")
        if host:
            description.set_vector_attribute("CandidateHosts", [host])
        job = self.create_job(description)
        job.run()
        return job, job.get_stdin(), job.get_stdout(), job.get_stderr()

    @asynchronous
    def list(self) -> List[str]:
        """Identifiers of the jobs that the grid knows."""
        return [f"[{self._grid.address}]-[{doc['id']}]" for doc in self._grid.pages("/v1/jobs", self, limit=1000)]

    def _job(self, native: int) -> Tuple[CprJob, Dict[str, Any]]:
        doc = self._grid.get(f"/v1/jobs/{native}", self)
        try:
            both = json.loads(doc["spec"]["environment"].get(_DESCRIPTION, "{}"))
            start, recovery = _description(both.get("start")), _description(both.get("recovery"))
        except (ValueError, AttributeError):
            start, recovery = None, None
        return CprJob(self, start, recovery, doc["spec"], native), doc

    @asynchronous
    def get_job(self, job_id: str, alive: bool = True) -> CprJob:
        """The job of an identifier. DoesNotExist where it is not known or has ended; with `alive=False` one that has
        ended is given, too. BadParameter for what is no identifier."""
        found = _ID.match(job_id) if isinstance(job_id, str) else None
        if found is None:
            raise BadParameter(f"{job_id!r} is no identifier of a job: [SERVICE]-[NUMBER]", self)
        if found.group(1) != self._grid.address:
            raise BadParameter(f"{job_id!r} is of another grid than {self._grid.address}", self)
        job, doc = self._job(int(found.group(2)))
        if alive and doc["state"] in OVER:
            raise DoesNotExist(f"{job_id!r} has ended: it is {doc['state']}", self)
        return job

    @asynchronous
    def get_self(self) -> CprJob:
        """The job that this program is part of; NoSuccess where it is part of none that the grid manages."""
        found = _ID.match(os.environ.get("SAGA_JOB_ID", ""))
        if found is None:
            raise NoSuccess("this program is no job that was started by this interface", self)
        try:
            job, doc = self._job(int(found.group(2)))
        except DoesNotExist as error:
            raise NoSuccess(f"the grid does not manage this program: {error}", self) from error
        if doc["spec"]["environment"].get("SAGA_JOB_ID") != os.environ["SAGA_JOB_ID"] or doc["state"] in OVER:
            raise NoSuccess("the grid does not manage this program", self)
        return job


cpr_job_service = CprJobService
