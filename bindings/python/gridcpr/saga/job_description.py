"""Descriptions of jobs (SAGA Core, class job_description; SAGA CPR, class cpr_job_description)."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Optional

from .attributes import Attribute, Attributes
from .base import SagaObject
from .errors import BadParameter, IncorrectURL, NotImplemented
from .url import Url

__all__ = ["CprJobDescription", "JobDescription", "cpr_job_description", "job_description"]

MPI = ("MPI", "OpenMPI", "MPICH", "MPICH2")
WILDCARD = re.compile(r"#([^#/]*)#?")


def _one_of(*values: str) -> Any:
    def check(value: str) -> Optional[str]:
        return None if value in values else f"is none of {', '.join(values)}"
    return check


def _at_least(least: int) -> Any:
    def check(value: str) -> Optional[str]:
        return None if int(value) >= least else f"is less than {least}"
    return check


def _sequence(value: str) -> Optional[str]:
    return None if not value.strip("FIi") else "has other letters than F, I and i"


def _location(value: str) -> Optional[str]:
    try:
        url = Url(value)
    except IncorrectURL as error:
        return str(error)
    if url.get_scheme() not in ("any", "gridcpr", ""):
        return "is no URL of a checkpoint directory: its scheme is neither gridcpr nor any"
    return None if url.get_path().startswith("/") else "has no absolute path"


def _name(value: str) -> Optional[str]:
    if not value or "/" in value or value in (".", "..") or any(ord(letter) < 32 for letter in value):
        return "is no name of an entry"
    return None


def _pair(value: str) -> Optional[str]:
    return None if re.match(r"[^=]+=", value) else "is not of the form KEY=VALUE"


def _transfer(value: str) -> Optional[str]:
    try:
        transfer(value)
    except BadParameter as error:
        return str(error)
    return None


def transfer(text: str) -> Any:
    """A directive `LOCAL OP REMOTE` of FileTransfer: whether it is before the job (`>`, `>>`), and what is copied."""
    found = re.match(r"\s*([^<>]+?)\s*(>>|>|<<|<)\s*([^<>]+?)\s*\Z", text)
    if not found:
        raise BadParameter("is not of the form LOCAL > REMOTE or LOCAL < REMOTE, with >> and << to append")
    local, operator, remote = found.groups()
    path = local
    if local.startswith("file:"):
        path = Url(local).get_path()
    if not path.startswith("area:"):
        path = os.path.abspath(path)
    before = operator[0] == ">"
    staged = {"from": path if before else remote, "to": remote if before else path}
    if len(operator) == 2:
        staged["append"] = True
    return before, staged


class JobDescription(SagaObject, Attributes):
    """What a job is to be. `Executable` is the only attribute that has to be set."""

    TYPE = "JobDescription"
    CORE = {
        "Executable": Attribute(),
        "Arguments": Attribute(vector=True),
        "SPMDVariation": Attribute(),
        "TotalCPUCount": Attribute(type="Int", default="1", check=_at_least(1)),
        "NumberOfProcesses": Attribute(type="Int", default="1", check=_at_least(1)),
        "ProcessesPerHost": Attribute(type="Int", default="1", check=_at_least(1)),
        "ThreadsPerProcess": Attribute(type="Int", default="1", check=_at_least(1)),
        "Environment": Attribute(vector=True, check=_pair),
        "WorkingDirectory": Attribute(default="."),
        "Interactive": Attribute(type="Bool", default="False"),
        "Input": Attribute(),
        "Output": Attribute(),
        "Error": Attribute(),
        "FileTransfer": Attribute(vector=True, check=_transfer),
        "Cleanup": Attribute(type="Enum", default="Default", check=_one_of("True", "False", "Default")),
        "JobStartTime": Attribute(type="Time"),
        "TotalCPUTime": Attribute(type="Int", check=_at_least(1)),
        "WallTimeLimit": Attribute(type="Int", check=_at_least(1)),
        "TotalPhysicalMemory": Attribute(type="Float"),
        "CPUArchitecture": Attribute(type="Enum", vector=True),
        "OperatingSystemType": Attribute(type="Enum", vector=True),
        "CandidateHosts": Attribute(vector=True),
        "Queue": Attribute(),
        "JobContact": Attribute(type="URL", vector=True),
    }
    ATTRIBUTES: Dict[str, Attribute] = CORE

    def __init__(self) -> None:
        SagaObject.__init__(self)

    def _text(self, key: str, fallback: str = "") -> str:
        return self.get_attribute(key) if self.attribute_exists(key) else fallback

    def _list(self, key: str) -> List[str]:
        return self.get_vector_attribute(key) if self.attribute_exists(key) else []

    def _environment(self) -> Dict[str, str]:
        pairs = (pair.partition("=") for pair in self._list("Environment"))
        environment = {key: value for key, _, value in pairs}
        threads = self.get_attribute("ThreadsPerProcess")
        if threads != "1" or self._text("SPMDVariation") == "OpenMP":
            environment.setdefault("OMP_NUM_THREADS", threads)
        if self._text("SPMDVariation") in MPI:
            # How many run where is the grid's business: Open MPI 4 and 5 would count processors.
            environment.setdefault("OMPI_MCA_rmaps_base_oversubscribe", "1")
            environment.setdefault("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
        return environment

    def _command(self) -> List[str]:
        """Program and arguments, with what redirects its streams."""
        command = [self.get_attribute("Executable"), *self._list("Arguments")]
        variation = self._text("SPMDVariation", "None")
        if variation in MPI:
            command = ["mpirun", "-np", self.get_attribute("NumberOfProcesses"), *command]
        elif variation not in ("None", "OpenMP", ""):
            raise NotImplemented(f"SPMDVariation: jobs of {variation!r} cannot be started here", self)
        redirections = [(key, sign) for key, sign in (("Input", "<"), ("Error", "2>")) if self.attribute_exists(key)]
        if self.get_attribute("Cleanup") == "True":
            command = self._cleaned(command)
        if not redirections:
            return command
        words = " ".join(f'{sign}"${number}"' for number, (_, sign) in enumerate(redirections, 1))
        files = [self.get_attribute(key) for key, _ in redirections]
        script = f'exec {words}; shift {len(files)}; exec "$@"'
        return ["/bin/sh", "-c", script, "saga", *files, *command]

    def _cleaned(self, command: List[str]) -> List[str]:
        """The same with what it has written removed when it has ended."""
        files = [self.get_attribute(key) for key in ("Output", "Error") if self.attribute_exists(key)]
        staged = [transfer(text)[1]["from"] for text in self._list("FileTransfer") if not transfer(text)[0]]
        if set(files) & set(staged):
            raise NotImplemented("Cleanup: a file that FileTransfer brings away cannot be removed before", self)
        names = " ".join(f'"${number}"' for number in range(1, len(files) + 1))
        script = f'(shift {len(files)}; exec "$@"); code=$?; rm -f {names}; exit $code'
        return ["/bin/sh", "-c", script, "saga", *files, *command] if files else command

    def _check(self) -> None:
        """Refuses what cannot be a job, naming the attribute."""
        if not self._text("Executable"):
            raise BadParameter("Executable is not set", self)
        systems = self._list("OperatingSystemType")
        if systems and not {"LINUX", "Linux", "linux", "ANY", "Any"} & set(systems):
            raise BadParameter(f"OperatingSystemType: there is LINUX only, and not {', '.join(systems)}", self)
        if self._list("JobContact"):
            raise NotImplemented("JobContact: have the operator set a webhook, or listen to job.state", self)

    def _hosts(self, nodes: List[Dict[str, Any]]) -> List[str]:
        """Names of the nodes to be considered; empty: any."""
        hosts = self._list("CandidateHosts")
        known = {node["info"]["name"] for node in nodes if node["state"] == "ready"}
        return [host for host in hosts if host in known] or hosts

    def _spec(self, nodes: List[Dict[str, Any]]) -> Dict[str, Any]:
        """The job as the service of a grid takes it."""
        self._check()
        directory = os.path.abspath(self.get_attribute("WorkingDirectory"))
        spec: Dict[str, Any] = {
            "command": self._command(), "directory": directory, "environment": self._environment(),
            "slots": int(self.get_attribute("TotalCPUCount")),
        }
        if self.attribute_exists("Output"):
            spec["output"] = self.get_attribute("Output")
        if self.attribute_exists("TotalPhysicalMemory"):
            spec["memory_mb"] = int(float(self.get_attribute("TotalPhysicalMemory")) + 0.5)
        if self.attribute_exists("WallTimeLimit"):
            spec["time_limit_s"] = int(self.get_attribute("WallTimeLimit"))
        if self.attribute_exists("TotalCPUTime"):
            spec["cpu_time_s"] = int(self.get_attribute("TotalCPUTime"))
        if self.attribute_exists("JobStartTime"):
            spec["not_before_ms"] = int(float(self.get_attribute("JobStartTime")) * 1000)
        kinds = self._list("CPUArchitecture")
        if kinds:
            there = {node["info"]["properties"].get("arch") for node in nodes}
            spec["requires"] = {"arch": next((kind for kind in kinds if kind in there), kinds[0])}
        queue = self._text("Queue")
        if queue:
            if not any(node["info"]["properties"].get(f"queue.{queue}") == "yes" for node in nodes):
                raise BadParameter(f"Queue: no node is of the queue {queue!r}", self)
            spec.setdefault("requires", {})[f"queue.{queue}"] = "yes"
        for before, staged in map(transfer, self._list("FileTransfer")):
            spec.setdefault("stage_in" if before else "stage_out", []).append(staged)
        hosts = self._hosts(nodes)
        processes = int(self.get_attribute("NumberOfProcesses"))
        if processes > 1 and self._text("SPMDVariation", "None") in ("None", "OpenMP", ""):
            units: List[Dict[str, Any]] = [{} for _ in range(processes)]
            per_host = int(self.get_attribute("ProcessesPerHost"))
            if "ProcessesPerHost" in self._values():
                ready = hosts or [node["info"]["name"] for node in nodes if node["state"] == "ready"]
                if len(ready) * per_host < processes:
                    raise BadParameter(f"ProcessesPerHost: {processes} processes, {per_host} on a host, need more than "
                                       f"{len(ready)} hosts", self)
                for number, unit in enumerate(units):
                    unit["node"] = ready[number // per_host]
            else:
                for number, unit in enumerate(units):
                    if hosts:
                        unit["node"] = hosts[number % len(hosts)]
            spec.update(units=units, slots=max(1, spec["slots"] // processes))
        elif hosts:
            spec["node"] = hosts[0]
        if self._text("SPMDVariation") in MPI:
            spec["slots"] = max(spec["slots"], processes)
        return spec


class CprJobDescription(JobDescription):
    """The same with how checkpoints are made and kept (SAGA CPR, section 2.2)."""

    TYPE = "CprJobDescription"
    ATTRIBUTES = {
        **JobDescription.CORE,
        "CPRPolicy": Attribute(type="Enum", default="", check=_one_of("External", "Internal", "Timed", "")),
        "CPRFrequency": Attribute(type="Int", default="86400", check=_at_least(1)),
        "CPRSequence": Attribute(default="", check=_sequence),
        "CPRTimeToLive": Attribute(type="Int", default="2500000", check=_at_least(1)),
        "CPRHistoryLength": Attribute(type="Int", default="-1"),
        "CPRBaseLocation": Attribute(type="URL", default="any:///#UserID#/#JobID#/", check=_location),
        "CPRBaseName": Attribute(type="URL", default="#JobID#.#Generation#.cpr", check=_name),
    }

    def _check(self) -> None:
        super()._check()
        known = {"CPRBaseLocation": ("JobID", "UserID"), "CPRBaseName": ("JobID", "UserID", "Generation")}
        for key, wildcards in known.items():
            for found in WILDCARD.finditer(self.get_attribute(key)):
                if found.group(1) not in wildcards or not found.group(0).endswith("#"):
                    raise BadParameter(f"{key}: there is no wildcard {found.group(0)!r}", self)

    def _cpr(self, spec: Dict[str, Any], url_of: Any) -> None:
        """Adds to a job of a grid how it is saved. `url_of` gives the URL of a path."""
        location = Url(self.get_attribute("CPRBaseLocation")).get_path()
        spec["names"] = {"location": location, "name": self.get_attribute("CPRBaseName")}
        spec["ttl_s"] = int(self.get_attribute("CPRTimeToLive"))
        history = int(self.get_attribute("CPRHistoryLength"))
        if history >= 0:
            spec["keep"] = max(1, history)
        policy = self.get_attribute("CPRPolicy")
        if policy == "Timed":
            spec["every_s"] = int(self.get_attribute("CPRFrequency"))
        values = {
            "SAGA_CPR_POLICY": policy,
            "SAGA_CPR_FREQUENCY": self.get_attribute("CPRFrequency"),
            "SAGA_CPR_SEQUENCE": self.get_attribute("CPRSequence") or "F",
            "SAGA_CPR_TIME_TO_LIVE": self.get_attribute("CPRTimeToLive"),
            "SAGA_CPR_HISTORY_LENGTH": str(history),
            "SAGA_CPR_BASE_LOCATION": str(url_of(location)),
            "SAGA_CPR_BASE_NAME": self.get_attribute("CPRBaseName"),
        }
        spec["environment"].update(values)


job_description = JobDescription
cpr_job_description = CprJobDescription
