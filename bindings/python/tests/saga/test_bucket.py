"""Checkpoints that are staged to a bucket: one of a program, and one of the grid."""

import os

from check import raises
from gridcpr import saga

top = saga.cpr_dir("any:///bucket", saga.Flags.CreateParents)
own = top.open("own.cpr", saga.Flags.Create)
with open("part.0", "w") as file:
    file.write("of the bucket")
own.add_file(os.path.abspath("part.0"))
top.stage("own.cpr", "s3://images/staged")
assert [str(url) for url in own.list_files()] == ["s3://images/staged/part.0"]
jd = saga.cpr_job_description()
jd.set_attribute("Executable", "/bin/sleep")
jd.set_vector_attribute("Arguments", ["100"])
job = saga.cpr_job_service().create_job(jd)
job.run()
made = saga.cpr_entry(job.checkpoint(), saga.Flags.None_)
made.stage("s3://images/staged/")
assert made.get_vector_attribute("staged")[0].startswith("s3://images/staged/")
assert made.get_file(0).get_scheme() == "file"
job.cancel()
del os.environ["AWS_ACCESS_KEY_ID"]
raises(saga.AuthenticationFailed, made.stage, "s3://images/x", about="AWS_ACCESS_KEY_ID")
