"""The SAGA CPR API for Python: jobs that are checkpointed and recovered, and checkpoints that form a tree.

    from gridcpr import saga

    jd = saga.cpr_job_description()
    jd.set_attribute("Executable", "./sim")
    jd.set_attribute("CPRPolicy", "Timed")
    jd.set_attribute("CPRFrequency", "600")
    job = saga.cpr_job_service().create_job(jd)
    job.run()
    url = job.checkpoint()
    job.cancel()
    job.recover(url)

Names are those of the OGF draft "SAGA Extension: Checkpoint and Recovery API" and of SAGA Core (GFD.90). It speaks to
`cprd`, so that jobs and checkpoints are those that `cpr` shows, too.
"""

from . import permissions
from .attributes import Attribute, Attributes
from .base import SagaObject
from .cpr_dir import CprDir, cpr_dir, directory
from .cpr_entry import CprEntry, checkpoint, cpr_entry
from .errors import (
    AlreadyExists, AuthenticationFailed, AuthorizationFailed, BadParameter, DoesNotExist, IncorrectState, IncorrectURL,
    NoSuccess, NotImplemented, PermissionDenied, SagaException, Timeout,
)
from .files import CprFile
from .flags import Flags, flags
from .job import CprJob, cpr_job
from .job_description import CprJobDescription, JobDescription, cpr_job_description, job_description
from .job_service import CprJobService, cpr_job_service
from .monitoring import Metric, Monitorable, Steerable
from .session import Context, Session
from .tasks import (
    ALL, ANY, ASYNC, CANCELED, DONE, FAILED, NEW, RUNNING, SUSPENDED, SYNC, TASK, Task, TaskContainer,
)
from .url import Url

__all__ = [
    "ALL", "ANY", "ASYNC", "AlreadyExists", "Attribute", "Attributes", "AuthenticationFailed", "AuthorizationFailed",
    "BadParameter", "CANCELED", "Context", "CprDir", "CprEntry", "CprFile", "CprJob", "CprJobDescription",
    "CprJobService", "DONE", "DoesNotExist", "FAILED", "Flags", "IncorrectState", "IncorrectURL", "JobDescription",
    "Metric", "Monitorable", "NEW", "NoSuccess", "NotImplemented", "PermissionDenied", "RUNNING", "SUSPENDED", "SYNC",
    "SagaException", "SagaObject", "Session", "Steerable", "TASK", "Task", "TaskContainer", "Timeout", "Url",
    "checkpoint", "cpr_dir", "cpr_entry", "cpr_job", "cpr_job_description", "cpr_job_service", "directory", "flags",
    "job_description", "permissions",
]
