"""Jobs on other hosts than the program that watches them: moved, staged, asked, and gone on from."""

import os
import sys

from check import count_to, lines, raises, until
from gridcpr import saga

# Who enters a host comes to its root directory.
os.chdir(os.path.join(os.environ["PYTHONPATH"], "../work"))
from test_jobs import SERVICE, counter, program, shell, started, values


def places(job, url):
    """The hosts that have the image of a checkpoint, as the grid says."""
    name = job._grid.get("/v1/names", path=saga.Url(url).get_path())["items"][0]
    known = job._grid.get(f"/v1/checkpoints/{name['checkpoint']}")
    return {place["node"] for place in known["locations"]}


def together():
    job = started(counter("moved.out", last=100000, CandidateHosts=["n1"]))
    count_to("moved.out", 3)
    assert job.get_vector_attribute("ExecutionHosts") == ["n1"]
    jd = saga.cpr_job_description()
    jd.set_vector_attribute("CandidateHosts", ["n2"])
    job.migrate(jd)
    assert job.get_vector_attribute("ExecutionHosts") == ["n2"] and job.get_state() == "Running"
    first = job.checkpoint()
    assert places(job, first) == {"n2"}
    job.cpr_stage_out(first, 0)
    assert places(job, first) == {"n1", "n2"}
    raises(saga.DoesNotExist, job.cpr_stage_out, first, 5)
    second = job.checkpoint()
    jd.set_vector_attribute("CandidateHosts", ["n1"])
    job.migrate(jd)
    now = len(lines("moved.out"))
    count_to("moved.out", now + 2)
    assert [int(line) for line in lines("moved.out")] == list(range(1, len(lines("moved.out")) + 1))
    assert places(job, second) == {"n2"}
    job.cpr_stage_in(second)
    assert places(job, second) == {"n1", "n2"}
    local = [url for url in saga.cpr_entry(second, saga.Flags.None_).list_files()]
    assert local[0].get_host() in ("n1", "n2")
    # Without arguments it is the last one, and all of its files.
    third = job.checkpoint()
    assert places(job, third) == {"n1"}
    job.cpr_stage_out()
    assert places(job, third) == {"n1", "n2"}
    job.suspend()
    job.migrate(jd)
    last = job.checkpoint()
    os.environ["LAST"] = str(last)
    nowhere = started(shell("true", CandidateHosts=["n9"]))
    assert nowhere.wait(0.3) is False
    nowhere.cancel()
    # Two processes on each host.
    four = shell("hostname >/dev/null; sleep 60", NumberOfProcesses="4", ProcessesPerHost="2")
    four = started(four)
    until("all four run", lambda: len(four.get_vector_attribute("ExecutionHosts")) == 4)
    assert sorted(four.get_vector_attribute("ExecutionHosts")) == ["n1", "n1", "n2", "n2"]
    four.cancel()
    raises(saga.BadParameter, SERVICE.create_job, shell("true", NumberOfProcesses="5", ProcessesPerHost="2"))
    # The program is on n1, and we are on n2.
    jd = program("asked.out", "application", "started")
    jd.set_vector_attribute("CandidateHosts", ["n1"])
    jd.set_vector_attribute("Environment", jd.get_vector_attribute("Environment") + [
        f"{key}={os.environ[key]}" for key in ("GRIDCPR_CA", "GRIDCPR_CERTIFICATE", "GRIDCPR_KEY")])
    asked = started(jd)
    until("the program listens", lambda: "ready started" in lines("asked.out"))
    told = []
    asked.add_callback("Checkpointed", values(told))
    request = asked.get_metric("Checkpoint")
    request.set_attribute("Value", "any:///nobody/asked/one.cpr")
    request.fire()
    until("it has made one", lambda: told)
    assert saga.cpr_entry("any:///nobody/asked/one.cpr", saga.Flags.None_).get_file_num() == 6
    progress = asked.get_metric("progress")
    progress.set_attribute("Value", "7")
    progress.fire()
    until("the program is steered", lambda: "steered to 7" in lines("asked.out"))
    asked.cancel()
    job.cpr_stage_out(last)
    with open("kept", "w") as file:
        file.write(f"{job.get_attribute('JobID')} {last}")


def elsewhere():
    with open("kept") as file:
        identifier, last = file.read().split()
    job = SERVICE.get_job(identifier)
    # It waits for the host that it was described for, which is gone; another one, from the same checkpoint, does not.
    at = len(lines("moved.out"))
    jd = job.get_job_description()
    job.cancel()
    jd.remove_attribute("CandidateHosts")
    other = SERVICE.create_job(jd)
    other.recover(last)
    assert other.get_vector_attribute("ExecutionHosts") == ["n2"] and other.get_state() == "Running"
    count_to("moved.out", at + 3)
    other.cancel()


if __name__ == "__main__":
    {"together": together, "elsewhere": elsewhere}[sys.argv[1]]()
    print("all of", sys.argv[1])
