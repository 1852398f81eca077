"""Jobs that can be checkpointed and recovered (SAGA Core, class job; SAGA CPR, class cpr_job).

States are those of the core job: New, Running, Suspended, Done, Canceled and Failed. A job that waits for a node,
that is saved or that is recovered is Running; `job.state_detail` says more. From a final state only `recover` leads
on.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any, Callable, Dict, List, Optional, Union

from .attributes import Attribute, Attributes
from .base import SagaObject
from .errors import BadParameter, DoesNotExist, IncorrectState, NoSuccess, PermissionDenied
from .grid import Grid
from .job_description import CprJobDescription
from .job_metrics import DETAILS, METRIC_UNITS, SAGA_STATES, STATE_METRICS, JobMetric, Listener
from .monitoring import Metric, Steerable
from .ns_entry import follow, place
from .streams import InputStream, OutputStream
from .tasks import FINAL, NEW, RUNNING, SUSPENDED, asynchronous, check_timeout
from .url import Url

__all__ = ["CprJob", "cpr_job"]

OVER = ("finished", "failed", "cancelled")
_PAUSE_S = 0.02
_TIMES = 5
"""A checkpoint is tried so often where the program holds a connection to the outside."""
_CPR_METRICS = {
    "Checkpoint": ("to be fired when an application-level checkpoint is requested", "String"),
    "Checkpointed": ("to be fired when an application-level checkpoint is finished", "Trigger"),
    "Recover": ("to be fired when an application-level recovery is requested", "String"),
    "Recovered": ("to be fired when an application-level recovery is finished", "Trigger"),
}


class CprJob(SagaObject, Steerable, Attributes):
    """A job. Attributes: JobID, ServiceURL, ExecutionHosts, Created, Started, Finished, WorkingDirectory, ExitCode and
    Termsig; all can only be read."""

    TYPE = "CprJob"
    ATTRIBUTES = {
        "JobID": Attribute(writable=False),
        "ServiceURL": Attribute(type="URL", writable=False),
        "ExecutionHosts": Attribute(vector=True, writable=False),
        "Created": Attribute(type="Time", writable=False),
        "Started": Attribute(type="Time", writable=False),
        "Finished": Attribute(type="Time", writable=False),
        "WorkingDirectory": Attribute(writable=False),
        "ExitCode": Attribute(type="Int", writable=False),
        "Termsig": Attribute(type="Int", writable=False),
    }

    def __init__(self, service: Any, description: Optional[CprJobDescription], recovery: Optional[CprJobDescription],
                 spec: Optional[Dict[str, Any]], native: Optional[int] = None) -> None:
        SagaObject.__init__(self, service._session)
        self._grid: Grid = service._grid
        self._description, self._recovery, self._spec = description, recovery, spec
        self._native = native
        self._earlier: List[int] = []
        self._listener: Optional[Listener] = None
        self._watched = False
        self._recovering = False
        self._ending = threading.Lock()
        for name, (text, kind) in STATE_METRICS.items():
            unit = METRIC_UNITS.get(name, "1")
            self._add_metric(JobMetric(name, text, "ReadOnly", unit, kind, NEW if name == "job.state" else ""))
        for name, (text, kind) in _CPR_METRICS.items():
            self._add_metric(JobMetric(name, text, "ReadWrite", "1", kind, ""))

    def __deepcopy__(self, memo: Dict[int, Any]) -> "CprJob":
        other = CprJob.__new__(CprJob)
        memo[id(self)] = other
        shared = ("_session", "_grid", "_description", "_recovery", "_spec", "_native", "_recovering")
        other.__dict__.update({key: self.__dict__[key] for key in shared})
        other._id, other._earlier, other._listener, other._watched = str(uuid.uuid4()), list(self._earlier), None, False
        other._ending = threading.Lock()
        for name, metric in self._metrics().items():
            values = metric._values()
            keys = ("Description", "Mode", "Unit", "Type", "Value")
            other._add_metric(JobMetric(name, *(values[key] for key in keys)))
        return other

    # What the grid knows.

    def _begun(self) -> int:
        if self._native is None:
            raise IncorrectState("the job is New", self)
        return self._native

    def _doc(self) -> Dict[str, Any]:
        return self._grid.get(f"/v1/jobs/{self._begun()}", self)

    def _post(self, verb: str, body: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        return self._grid.post(f"/v1/jobs/{self._begun()}/{verb}", body or {}, self)

    def _until(self, good: Callable[[Dict[str, Any]], bool],
               timeout: Optional[float] = None) -> Optional[Dict[str, Any]]:
        """Waits until the record of the job is good; none: it was not in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _PAUSE_S
        while True:
            doc = self._doc()
            if good(doc):
                return doc
            if deadline is not None and time.monotonic() >= deadline:
                return None
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 1.3, 0.25)

    def _state_of(self, doc: Dict[str, Any]) -> str:
        return RUNNING if self._recovering else SAGA_STATES[doc["state"]]

    def _values(self) -> Dict[str, Any]:
        values: Dict[str, Any] = {"ServiceURL": self._grid.address}
        if self._native is None:
            return values
        doc = self._doc()
        hosts = [unit["node"] for unit in doc["units"] if unit["node"]] or ([doc["node"]] if doc["node"] else [])
        values.update(JobID=self.job_id(), ExecutionHosts=hosts, WorkingDirectory=doc["spec"]["directory"])
        times = {"Created": "submitted_ms", "Started": "started_ms", "Finished": "ended_ms"}
        values.update({key: f"{doc[name] / 1000:.3f}" for key, name in times.items() if doc[name] is not None})
        if doc["exit_code"] is not None and doc["state"] in OVER:
            values["ExitCode"] = str(doc["exit_code"])
        if doc["signal"] is not None and doc["state"] in OVER:
            values["Termsig"] = str(doc["signal"])
        return values

    def job_id(self) -> str:
        """The identifier: the URL of the manager and its own number of the job, in brackets."""
        return f"[{self._grid.address}]-[{self._begun()}]"

    def _detail(self) -> str:
        if self._native is None:
            return ""
        doc = self._doc()
        if self._recovering:
            return "Recovering"
        if doc["state"] == "running":
            known = self._grid.get("/v1/checkpoints", self, job=self._native, state="pending")["items"]
            return "Checkpointing" if known else "Running"
        return DETAILS.get(doc["state"], doc["reason"] or "")

    def _used(self) -> Dict[str, int]:
        """What it has used, as far as that was seen: of all its starts."""
        known = [self._grid.get(f"/v1/jobs/{native}", self)["used"] for native in [*self._earlier, self._begun()]]
        total = dict(known[-1])
        total["cpu_ms"] = sum(used["cpu_ms"] for used in known)
        for key in ("most_memory", "most_virtual_memory"):
            total[key] = max(used[key] for used in known)
        return total

    # Metrics.

    def _remote_metrics(self) -> Dict[str, Dict[str, Any]]:
        items = self._grid.get(f"/v1/jobs/{self._begun()}/metrics", self)["items"]
        return {item["name"]: item for item in items}

    def _post_metric(self, **what: Any) -> None:
        self._post("metrics", what)

    def _refresh_metrics(self) -> None:
        if self._native is None:
            return
        remote = self._remote_metrics()
        for name, item in remote.items():
            if name not in self._metrics():
                known = (item[key] for key in ("description", "mode", "unit", "kind", "value"))
                self._add_metric(JobMetric(name, *known))
        for name in list(self._metrics()):
            if name not in remote and name not in STATE_METRICS:
                del self._metrics()[name]

    def list_metrics(self) -> List[str]:
        """Names of its metrics, those included that programs have added."""
        self._refresh_metrics()
        return super().list_metrics()

    def get_metric(self, name: str) -> Metric:
        """A metric; DoesNotExist where there is none of this name."""
        if name not in self._metrics():
            self._refresh_metrics()
        return super().get_metric(name)

    def add_metric(self, metric: Metric) -> bool:
        """Adds a metric that every program which knows the job has then; False where there is one of the name."""
        values = metric._values()
        if values["Name"] in self.list_metrics():
            return False
        self._post_metric(op="add", metric={
            "name": values["Name"], "description": values["Description"], "mode": values["Mode"],
            "unit": values["Unit"], "kind": values["Type"], "value": values["Value"],
        })
        self._refresh_metrics()
        return True

    def remove_metric(self, name: str) -> None:
        """Takes a metric away that a program has added; BadParameter for the others."""
        if name in STATE_METRICS:
            raise BadParameter(f"every job has the metric {name!r}", self)
        self._post_metric(op="remove", name=name)
        self._metrics().pop(name, None)

    def _listen(self, after: str = "") -> None:
        self._watched = True
        if self._native is not None and self._listener is None:
            self._listener = Listener(self, after)

    # The core job.

    def _submit(self, spec: Dict[str, Any]) -> None:
        doc = self._grid.call("POST", "/v1/jobs", spec, self, key=str(uuid.uuid4()))
        if self._native is not None:
            self._earlier.append(self._native)
        self._native = doc["id"]
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        if self._watched:
            self._listen("0")

    @asynchronous
    def run(self) -> None:
        """Begins; IncorrectState where it has begun."""
        if self._native is not None or self._spec is None:
            raise IncorrectState(f"the job is {self.get_state()}, and can be run when New only", self)
        self._submit(self._spec)

    @asynchronous
    def wait(self, timeout: float = -1) -> bool:
        """Waits for a final state: for ever with a negative timeout, not at all with 0. False where it has none yet."""
        seconds = check_timeout(timeout)
        if self._native is None:
            raise IncorrectState("the job is New, and would never end", self)
        done = self._until(lambda doc: doc["state"] in OVER and not self._recovering, seconds)
        return done is not None

    @asynchronous
    def cancel(self, timeout: float = 0) -> None:
        """Ends it for good, and waits so long until it has; a negative timeout waits for ever. No effect in a final
        state."""
        seconds = check_timeout(timeout)
        if self.get_state() in FINAL:
            return
        self._post("cancel")
        # Whoever asks for the state at once is not told that it runs.
        self._until(lambda doc: doc["state"] in OVER, max(seconds, 60.0) if seconds is not None else None)

    def get_state(self) -> str:
        """New, Running, Suspended, Done, Canceled or Failed."""
        return NEW if self._native is None else self._state_of(self._doc())

    def get_result(self) -> Any:
        """Waits for the end; a job has no result."""
        self.wait()
        self.rethrow()
        return None

    def get_object(self) -> Any:
        """The job itself: it is the task."""
        return self

    def rethrow(self) -> None:
        """Raises NoSuccess with the reason where the job has failed."""
        if self._native is not None and (doc := self._doc())["state"] == "failed":
            raise NoSuccess(f"job {self._native} has failed: {doc['reason']}", self)

    def _require(self, *states: str) -> Dict[str, Any]:
        doc = self._doc() if self._native is not None else {"state": "new"}
        state = NEW if self._native is None else self._state_of(doc)
        if state not in states:
            raise IncorrectState(f"the job is {state}, and not {' or '.join(states)}", self)
        return doc

    @asynchronous
    def suspend(self) -> None:
        """Saves the job and ends its processes, until it is resumed."""
        self._require(RUNNING)
        self._until(lambda doc: doc["state"] not in ("queued", "starting"))
        self._require(RUNNING)
        before = self._post("suspend")
        doc = self._until(lambda doc: doc["intent"] is None or doc["state"] != "running")
        if doc is None or doc["state"] != "suspended":
            reason = (doc or before)["reason"]
            raise NoSuccess(f"job {self._native} could not be suspended: {reason}", self)

    @asynchronous
    def resume(self) -> None:
        """Lets a suspended job go on."""
        self._require(SUSPENDED)
        self._post("recover")
        self._run_again()

    @asynchronous
    def migrate(self, jd: CprJobDescription) -> None:
        """Lets the job go on, with its state, on the first of the candidate hosts of a description, or anywhere else.
        """
        state = SAGA_STATES[self._require(RUNNING, SUSPENDED)["state"]]
        hosts = jd._hosts(self._grid.get("/v1/nodes", self)["items"])
        if state == SUSPENDED:
            self._post("recover", {"on": hosts[0]} if hosts else {})
            self._run_again()
            return
        before = self._until(lambda doc: doc["state"] not in ("queued", "starting"))
        self._post("migrate", {"to": hosts[0] if hosts else None})
        count = before["incarnation"] if before else 0
        moved = self._until(lambda doc: doc["state"] not in ("queued", "starting")
                            and (doc["incarnation"] > count or doc["intent"] is None))
        if moved is None or moved["incarnation"] <= count:
            raise NoSuccess(f"job {self._native} could not be moved: {moved and moved['reason']}", self)

    @asynchronous
    def signal(self, signum: int) -> None:
        """Has a signal sent to the first process of the job, or of each of NumberOfProcesses: at once, or when it runs.
        BadParameter for KILL, STOP and what is no signal: `cancel` and `suspend` do that."""
        if isinstance(signum, bool) or not isinstance(signum, int):
            raise BadParameter(f"{signum!r} is no number of a signal", self)
        self._require(RUNNING, SUSPENDED)
        self._post("signal", {"number": int(signum)})

    @asynchronous
    def get_job_description(self) -> CprJobDescription:
        """A copy of the description; DoesNotExist where it is not known."""
        if self._description is None:
            raise DoesNotExist("the job was described in another way than by this interface", self)
        return self._description.clone()

    def _stream(self, name: str) -> str:
        description = self._description
        if description is None or description.get_attribute("Interactive") != "True" or self._spec is None:
            raise IncorrectState("only a job that is interactive has streams", self)
        return self._spec["environment"][f"SAGA_STREAM_{name}"]

    def get_stdin(self) -> InputStream:
        """What an interactive job reads."""
        return InputStream(self._stream("STDIN"), self)

    def get_stdout(self) -> OutputStream:
        """What an interactive job writes."""
        return OutputStream(self._stream("STDOUT"), self)

    def get_stderr(self) -> OutputStream:
        """What an interactive job writes of errors."""
        return OutputStream(self._stream("STDERR"), self)

    # Checkpoints.

    def _names(self) -> List[Dict[str, Any]]:
        if self._native is None:
            return []
        all_of = [self._grid.pages("/v1/names", self, job=native, limit=1000)
                  for native in [*self._earlier, self._native]]
        found = [item for items in all_of for item in items if item["kind"] == "checkpoint"]
        return sorted(found, key=lambda item: (item["time_ms"], item["id"]))

    @asynchronous
    def list_checkpoints(self) -> List[Url]:
        """URLs of its checkpoints, the oldest first."""
        return [self._grid.url(item["path"]) for item in self._names()]

    @asynchronous
    def get_last_cpr(self) -> Url:
        """The URL of the newest checkpoint; DoesNotExist where there is none."""
        return self._grid.url(self._last()["path"])

    def _last(self) -> Dict[str, Any]:
        names = self._names()
        if not names:
            raise DoesNotExist("the job has no checkpoint", self)
        return names[-1]

    def _entry(self, url: Union[str, Url]) -> Dict[str, Any]:
        """The checkpoint of a URL, or the last one where it is empty."""
        if not str(url):
            return self._last()
        grid, path = place(url, self._grid.url("/"), self, self.get_session())
        if grid.address != self._grid.address:
            raise BadParameter(f"{str(url)!r} is in another grid than the job", self)
        record = follow(self._grid, path, self)
        if record["kind"] != "checkpoint":
            raise BadParameter(f"{str(url)!r} is no checkpoint", self)
        return record

    @asynchronous
    def checkpoint(self, url: Union[str, Url] = "") -> Url:
        """Saves the running job; gives the URL of the checkpoint when that is complete and durable. It is called as
        `url` says, or else as base location and base name of the description do."""
        self._require(RUNNING)
        body: Dict[str, Any] = {}
        if str(url):
            grid, path = place(url, self._grid.url("/"), self, self.get_session())
            if grid.address != self._grid.address:
                raise BadParameter(f"{str(url)!r} is in another grid than the job", self)
            body["name"] = path
        # One that waits for its node is Running in the sense of SAGA.
        self._until(lambda doc: doc["state"] not in ("queued", "starting"))
        self._require(RUNNING)
        for _ in range(_TIMES):
            made = self._made(body)
            # A program that listens to this interface asks the grid now and then, and may do so just now.
            if made["state"] == "complete" or "connected to a process outside the job" not in (made["reason"] or ""):
                break
            time.sleep(_PAUSE_S)
        if made["state"] != "complete":
            raise NoSuccess(f"job {self._native} could not be saved: {made['reason']}", self)
        for item in self._names():
            if item["checkpoint"] == made["id"]:
                return self._grid.url(item["path"])
        events = self._grid.get("/v1/events", self, job=self._native, kind="checkpoint.unnamed")["items"]
        why = events[-1]["text"] if events else "it has no name"
        raise PermissionDenied(f"job {self._native} was saved, and {why}", self)

    def _made(self, body: Dict[str, Any]) -> Dict[str, Any]:
        """Asks for a checkpoint, and waits until it is made, or is not."""
        made = self._grid.call("POST", f"/v1/jobs/{self._native}/checkpoint", body, self, key=str(uuid.uuid4()))
        pause = _PAUSE_S
        while made["state"] not in ("complete", "failed", "lost", "freed"):
            time.sleep(pause)
            pause = min(pause * 1.3, 0.25)
            made = self._grid.get(f"/v1/checkpoints/{made['id']}", self)
        return made

    def _run_again(self) -> None:
        doc = self._until(lambda doc: doc["state"] not in ("queued", "starting"))
        if doc is not None and doc["state"] == "failed" and doc["exit_code"] is None:
            raise NoSuccess(f"job {self._native} could not go on: {doc['reason']}", self)

    def _anew(self) -> bool:
        """Whether the job is recovered by starting a program that was described for it."""
        other, first = self._recovery, self._description
        keys = ("Executable", "Arguments", "Environment")
        return other is not None and first is not None and any(
            other._values().get(key) != first._values().get(key) for key in keys)

    @asynchronous
    def recover(self, url: Union[str, Url] = "") -> None:
        """Restarts the job from a checkpoint, the last one where `url` is empty; a New job is run by that.

        From an image its processes go on as they were saved. Where the checkpoint is one that a program has made
        itself, or the recovery description has another program, arguments or environment, the program of the recovery
        description is started, and finds the URL of the checkpoint in its environment as SAGA_CPR_RECOVER."""
        entry = self._entry(url)
        if self._native is not None:
            self._require(RUNNING, SUSPENDED, *FINAL)
        image = entry["checkpoint"] if not self._anew() else None
        if image is None and self._description is None:
            raise NoSuccess("the job was not described by this interface, and cannot be started anew", self)
        if image is not None:
            known = self._grid.get(f"/v1/checkpoints/{image}", self)
            if known["state"] not in ("stored", "complete"):
                raise NoSuccess(f"{entry['path']!r} is {known['state']}: {known['reason']}", self)
        before, self._recovering = self._recovering, True
        try:
            if self._native is not None and self._doc()["state"] not in (*OVER, "suspended"):
                self._post("cancel")
                self._until(lambda doc: doc["state"] in OVER)
            if image is None or self._native is None:
                spec = self._restart_spec(entry)
                if image is not None:
                    spec["from"] = image
                self._submit(spec)
            else:
                hosts = self._recovery._hosts(self._grid.get("/v1/nodes", self)["items"]) if self._recovery else []
                self._post("recover", {"from": image, "of_any_job": True, **({"on": hosts[0]} if hosts else {})})
            self._run_again()
            if image is not None and self._doc()["from"] != image:
                # The grid goes on from another one where it can; that is not what was asked for.
                self._post("cancel")
                self._until(lambda doc: doc["state"] in OVER)
                known = self._grid.get(f"/v1/checkpoints/{image}", self)
                why = known["reason"] or known["state"]
                raise NoSuccess(f"{entry['path']!r} could not be gone on from: {why}", self)
        finally:
            self._recovering = before

    def _restart_spec(self, entry: Dict[str, Any]) -> Dict[str, Any]:
        spec = self._service_spec(self._recovery or self._description)
        spec["environment"]["SAGA_CPR_RECOVER"] = str(self._grid.url(entry["path"]))
        return spec

    def _service_spec(self, description: Any) -> Dict[str, Any]:
        from .job_service import spec_of
        return spec_of(self._grid, description, self._description, self._recovery, self)

    # Where files of checkpoints are.

    def _images(self, url: Union[str, Url], id: int) -> List[int]:
        """Numbers of the images of a checkpoint, or of one file of it."""
        entry = self._entry(url)
        if entry["checkpoint"] is None:
            raise NoSuccess(f"{entry['path']!r} was made by a program: stage its files with cpr_entry.stage", self)
        known = self._grid.get(f"/v1/checkpoints/{entry['checkpoint']}", self)
        parts = {unit["unit"]: unit["checkpoint"] for unit in known["units"] if unit["checkpoint"]}
        parts = parts or {0: known["id"]}
        if id != -1 and id not in parts:
            raise DoesNotExist(f"{entry['path']!r} has no image {id}", self)
        return list(parts.values()) if id == -1 else [parts[id]]

    def _bring(self, image: int, node: str) -> None:
        """Has a node get an image, and waits until it has."""
        known = self._grid.post(f"/v1/checkpoints/{image}/copies", {"to": node}, self)
        pause = _PAUSE_S
        while node not in [place["node"] for place in known["locations"]]:
            if known["state"] not in ("stored", "complete"):
                raise NoSuccess(f"checkpoint {image} is {known['state']}: {known['reason']}", self)
            time.sleep(pause)
            pause = min(pause * 1.3, 0.25)
            known = self._grid.get(f"/v1/checkpoints/{image}", self)

    @asynchronous
    def cpr_stage_out(self, url: Union[str, Url] = "", id: int = -1) -> None:
        """Brings files of a checkpoint, the last one where `url` is empty, away from the host where the job runs: to
        another node, unless they are in the grid's store. With -1 all of them."""
        self._begun()
        hosts = self._values().get("ExecutionHosts", [])
        nodes = self._grid.get("/v1/nodes", self)["items"]
        ready = [node["info"]["name"] for node in nodes if node["state"] == "ready"]
        others = [name for name in ready if name not in hosts]
        for image in self._images(url, id):
            known = self._grid.get(f"/v1/checkpoints/{image}", self)
            if any(place["node"] not in hosts for place in known["locations"]):
                continue
            if not others:
                raise NoSuccess("there is neither a store nor another node that the files could be brought to", self)
            self._bring(image, others[0])

    @asynchronous
    def cpr_stage_in(self, url: Union[str, Url] = "", id: int = -1) -> None:
        """Brings files of a checkpoint, the last one where `url` is empty, to the host where the job runs. With -1
        all of them."""
        self._begun()
        doc = self._doc()
        for number, image in enumerate(self._images(url, id)):
            unit = number if id == -1 else id
            node = doc["units"][unit]["node"] if doc["units"] else doc["node"]
            if not node:
                raise IncorrectState("no host has the job, and so none can get its files", self)
            self._bring(image, node)


cpr_job = CprJob
