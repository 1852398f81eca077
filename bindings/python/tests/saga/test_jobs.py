"""Jobs: described, run, saved, recovered and watched, in a grid that runs on this machine."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

from check import count_to, lines, main, raises, until
from gridcpr import saga

SERVICE = saga.cpr_job_service()
HERE = os.path.dirname(os.path.abspath(__file__))
COUNT = "i=0; while [ $i -lt {last} ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit {code}"
TRANSITIONS = {
    "New": ["Running"], "Running": ["Suspended", "Done", "Canceled", "Failed"],
    "Suspended": ["Running", "Canceled", "Done", "Failed"], "Done": [], "Canceled": [], "Failed": [],
}


def shell(script, output=None, **attributes):
    jd = saga.cpr_job_description()
    jd.set_attribute("Executable", "/bin/sh")
    jd.set_vector_attribute("Arguments", ["-c", script])
    if output:
        jd.set_attribute("Output", output)
    for key, value in attributes.items():
        (jd.set_vector_attribute if isinstance(value, list) else jd.set_attribute)(key, value)
    return jd


def counter(output, last=2000, code=0, **attributes):
    return shell(COUNT.format(last=last, code=code), output, **attributes)


def program(output, *arguments, **attributes):
    """A job that runs this file, with the interface."""
    jd = saga.cpr_job_description()
    jd.set_attribute("Executable", "/usr/bin/python3")
    jd.set_vector_attribute("Arguments", [os.path.abspath(__file__), *arguments])
    jd.set_vector_attribute("Environment", [f"PYTHONPATH={os.environ['PYTHONPATH']}", "PYTHONDONTWRITEBYTECODE=1",
                                            f"GRIDCPR_GRID={os.environ['GRIDCPR_GRID']}"])
    jd.set_attribute("Output", output)
    for key, value in attributes.items():
        jd.set_attribute(key, value)
    return jd


def started(jd, recovery=None):
    job = SERVICE.create_job(jd, recovery)
    job.run()
    return job


def native(job):
    return int(job.get_attribute("JobID").rsplit("[", 1)[1][:-1])


def values(metric_values):
    def callback(about, metric, context):
        metric_values.append(metric.get_attribute("Value"))
        return True
    return callback


# SAGA-JS-5, SAGA-JD-Core-Executable, SAGA-JS-6, SAGA-JD-CPRBaseLocation-6, SAGA-JS-4
def test_jobs_are_created_from_good_descriptions_only():
    error = raises(saga.BadParameter, SERVICE.create_job, saga.cpr_job_description(), about="Executable")
    assert isinstance(error.get_object(), saga.CprJobDescription)
    good, bad = shell("true"), shell("true")
    bad.set_attribute("CPRBaseLocation", "any:///#Foo#/")
    raises(saga.BadParameter, SERVICE.create_job, bad, about="CPRBaseLocation")
    raises(saga.BadParameter, SERVICE.create_job, good, bad, about="recovery description")
    bad.set_attribute("CPRBaseLocation", "any:///x/")
    bad.set_attribute("CPRBaseName", "#Nothing#.cpr")
    raises(saga.BadParameter, SERVICE.create_job, bad, about="CPRBaseName")
    raises(saga.BadParameter, SERVICE.create_job, shell("true", OperatingSystemType=["WINNT"]), about="LINUX")
    raises(saga.BadParameter, SERVICE.create_job, "true")
    before = SERVICE.list()
    jd = shell("echo first", "copied.out")
    job = SERVICE.create_job(jd)
    assert job.get_state() == saga.NEW and SERVICE.list() == before
    jd.set_vector_attribute("Arguments", ["-c", "echo second"])
    raises(saga.IncorrectState, job.wait)
    raises(saga.IncorrectState, job.cancel)
    raises(saga.IncorrectState, job.checkpoint)
    raises(saga.DoesNotExist, job.get_last_cpr)
    raises(saga.DoesNotExist, job.get_attribute, "JobID")
    job.run()
    raises(saga.IncorrectState, job.run)
    assert job.wait() and lines("copied.out") == ["first"]
    raises(saga.IncorrectState, job.run)


# SAGA-JD-Core-Arguments, SAGA-JD-Core-Environment, SAGA-JD-Core-WorkingDirectory, SAGA-JD-Core-Input
# SAGA-JD-Core-Output, SAGA-JD-Core-Error, SAGA-JD-Core-ThreadsPerProcess, SAGA-JD-Core-NumberOfProcesses
# SAGA-JD-Core-OperatingSystemType, SAGA-JD-Core-JobStartTime, SAGA-JD-Core-FileTransfer
# SAGA-JD-CPRSequence-7, SAGA-JD-CPRTimeToLive-4, SAGA-JD-CPRBaseLocation-5, SAGA-JOB-Core-attr-WorkingDirectory
def test_a_job_is_run_as_it_is_described():
    os.makedirs("described", exist_ok=True)
    with open("described/input", "w") as file:
        file.write("b\na\n")
    with open("staged.in", "w") as file:
        file.write("brought\n")
    jd = saga.cpr_job_description()
    jd.set_attribute("Executable", "/bin/sh")
    script = "printf '%s\\n' \"$@\"; pwd; env; sort; cat here; cp here there; echo wrong >&2"
    jd.set_vector_attribute("Arguments", ["-c", script, "sh", "a b", "it's", '"q"', ""])
    jd.set_vector_attribute("Environment", ["ONE=1=x", "TWO=a b"])
    for key, value in {"WorkingDirectory": os.path.abspath("described"), "Input": "input", "Output": "output",
                       "Error": "error", "ThreadsPerProcess": "8", "CPRSequence": "FIiI", "CPRTimeToLive": "77",
                       "CPRPolicy": "External"}.items():
        jd.set_attribute(key, value)
    jd.set_vector_attribute("OperatingSystemType", ["LINUX"])
    source, target = os.path.abspath("staged.in"), os.path.abspath("staged.out")
    jd.set_vector_attribute("FileTransfer", [f"{source} > here", f"{target} < there"])
    start = time.time() + 2
    jd.set_attribute("JobStartTime", start)
    job = started(jd)
    assert job.get_state() == saga.RUNNING
    units = started(shell("echo $GRIDCPR_UNIT", "unit-%u.out", NumberOfProcesses="3"))
    assert job.wait() and job.get_state() == saga.DONE
    assert float(job.get_attribute("Started")) >= start - 0.1
    got = lines("described/output")
    assert got[:4] == ["a b", "it's", '"q"', ""] and got[4] == os.path.abspath("described"), got
    assert job.get_attribute("WorkingDirectory") == got[4]
    assert got[-3:] == ["a", "b", "brought"] and lines("described/error") == ["wrong"]
    number = native(job)
    location = saga.Url(f"gridcpr://localhost/{os.environ['SAGA_USER']}/{number}/")
    for line in ["ONE=1=x", "TWO=a b", "OMP_NUM_THREADS=8", "SAGA_CPR_SEQUENCE=FIiI", "SAGA_CPR_TIME_TO_LIVE=77",
                 f"SAGA_CPR_BASE_LOCATION={location}", "SAGA_CPR_POLICY=External"]:
        assert line in got, (line, got)
    assert lines("staged.out") == ["brought"]
    assert units.wait() and [lines(f"unit-{unit}.out") for unit in range(3)] == [["0"], ["1"], ["2"]]


# SAGA-JOB-Core-get_state, SAGA-JOB-Core-states, SAGA-JOB-Core-run, SAGA-JOB-Core-wait, SAGA-JOB-Core-cancel
# SAGA-JOB-Core-suspend, SAGA-JOB-Core-resume, SAGA-JOB-Core-metric-state, SAGA-JOB-2, SAGA-JOB-3, SAGA-JOB-4
# SAGA-JOB-Core-metric-state_detail, SAGA-JOB-checkpoint-3, SAGA-TASK-10
def test_states_follow_the_model():
    job = SERVICE.create_job(counter("states.out", last=120))
    states, details = [], []
    job.add_callback("job.state", values(states))
    job.add_callback("job.state_detail", values(details))
    assert job.get_state() == "New" and job.get_metric("job.state").get_attribute("Value") == "New"
    for call in (job.suspend, job.resume, job.checkpoint, job.wait, job.cancel):
        raises(saga.IncorrectState, call)
    job.run()
    assert job.get_state() == "Running"
    assert job.wait(0) is False and job.wait(0.1) is False
    raises(saga.IncorrectState, job.resume)
    count_to("states.out", 5)
    seen = []
    task = job.checkpoint(ttype=saga.ASYNC)
    while not task.wait(0):
        seen.append(job.get_state())
    task.rethrow()
    assert set(seen) <= {"Running"} and job.get_state() == "Running"
    until("it is seen that it was saved", lambda: details[-1:] == ["Running"] and "Checkpointing" in details)
    job.suspend()
    assert job.get_state() == "Suspended"
    still = lines("states.out")
    for call in (job.suspend, job.checkpoint, job.run):
        raises(saga.IncorrectState, call)
    assert job.wait(0.2) is False and lines("states.out") == still
    job.resume()
    assert job.get_state() == "Running"
    assert job.wait() and job.get_state() == "Done" and job.wait(0) and job.wait(5)
    assert lines("states.out") == [str(number) for number in range(1, 121)]
    job.cancel()
    assert job.get_state() == "Done"
    for call in (job.suspend, job.resume, job.checkpoint, job.run):
        raises(saga.IncorrectState, call)
    until("all states are told", lambda: states[-1:] == ["Done"])
    assert states == ["Running", "Suspended", "Running", "Done"], states
    for before, after in zip(["New", *states], states):
        assert after in TRANSITIONS[before], states
    other = started(counter("cancelled.out"))
    count_to("cancelled.out", 2)
    other.cancel()
    assert other.get_state() == "Canceled" and other.wait(0)
    ended = lines("cancelled.out")
    time.sleep(0.3)
    assert lines("cancelled.out") == ended
    raises(saga.IncorrectState, other.checkpoint)
    table = [job.wait, other.wait, other.cancel, saga.Task(job, lambda: 1).cancel]
    for call in table:
        for bad in ("soon", None, float("nan")):
            raises(saga.BadParameter, call, bad)


# SAGA-JOB-Core-Failed, SAGA-JOB-Core-attr-ExitCode, SAGA-JOB-Core-attr-Termsig, SAGA-JOB-Core-attr-times
# SAGA-JOB-Core-attr-ExecutionHosts, SAGA-JOB-Core-attr-JobID, SAGA-JS-9, SAGA-JS-10, SAGA-JOB-Core-metric-performance
# SAGA-JOB-Core-get_job_description, SAGA-MON-1
def test_what_is_known_of_a_job():
    begun = time.time()
    jd = shell("sleep 600", CPRPolicy="External", CPRTimeToLive="99")
    jobs = [started(jd) for _ in range(3)]
    failed, crashed = started(shell("exit 7")), started(shell("kill -9 $$"))
    identifiers = [job.get_attribute("JobID") for job in jobs]
    assert set(identifiers) <= set(SERVICE.list()) and all(one.startswith("[unix:/") for one in identifiers)
    assert failed.wait() and failed.get_state() == "Failed" and failed.get_attribute("ExitCode") == "7"
    raises(saga.NoSuccess, failed.rethrow, about="7")
    assert not failed.attribute_exists("Termsig")
    assert crashed.wait() and crashed.get_state() == "Failed" and crashed.get_attribute("Termsig") == "9"
    times = [float(failed.get_attribute(key)) for key in ("Created", "Started", "Finished")]
    assert begun - 1 <= times[0] <= times[1] <= times[2] <= time.time() + 1
    again = saga.cpr_job_service().get_job(identifiers[0])
    until("it runs", lambda: again.attribute_exists("ExecutionHosts") and again.get_vector_attribute("ExecutionHosts"))
    assert again.get_vector_attribute("ExecutionHosts") == ["n1"] and again.get_state() == "Running"
    raises(saga.IncorrectState, again.get_attribute, "ExecutionHosts")
    raises(saga.PermissionDenied, again.set_attribute, "JobID", "x")
    assert not again.attribute_exists("ExitCode")
    given = again.get_job_description()
    assert given._values() == jd._values() and given.get_attribute("CPRTimeToLive") == "99"
    for bad in ("17", "[]-[]", "[unix:/nowhere]-[1]", 17):
        raises(saga.BadParameter, SERVICE.get_job, bad)
    raises(saga.DoesNotExist, SERVICE.get_job, identifiers[0].rsplit("[", 1)[0] + "[999999]")
    raises(saga.DoesNotExist, SERVICE.get_job, failed.get_attribute("JobID"))
    assert SERVICE.get_job(failed.get_attribute("JobID"), alive=False).get_attribute("ExitCode") == "7"
    known = {"Checkpoint", "Checkpointed", "Recover", "Recovered", "job.state", "job.state_detail"}
    assert known <= set(again.list_metrics())
    raises(saga.DoesNotExist, again.get_metric, "none")
    raises(saga.NotImplemented, again.get_metric("job.performance").get_attribute, "Value")
    container = saga.TaskContainer()
    for job in jobs:
        container.add(job)
    assert container.get_states() == ["Running"] * 3 and container.wait(saga.ANY, 0) is None
    container.cancel()
    container.wait()
    assert {job.get_state() for job in jobs} == {"Canceled"}


# SAGA-JOB-list_checkpoints, SAGA-JOB-checkpoint-1, SAGA-JOB-checkpoint-2, SAGA-JOB-checkpoint-4, SAGA-JOB-recover-1
# SAGA-JOB-recover-2, SAGA-JOB-recover-3, SAGA-JOB-get_last_cpr, SAGA-JS-3, SAGA-SEM-1, SAGA-SEM-3, SAGA-SEM-6
# SAGA-URL-3, SAGA-CAP-B.1, SAGA-SEM-8, SAGA-JD-CPRBaseName-1, SAGA-JD-CPRBaseName-3, SAGA-JD-CPRBaseName-4
# SAGA-JD-CPRBaseName-5, SAGA-JD-CPRBaseLocation-1, SAGA-JD-CPRBaseLocation-2, SAGA-JD-CPRBaseLocation-3
# SAGA-JD-CPRBaseLocation-4, SAGA-JD-CPRPolicy-2, SAGA-JD-CPRFrequency-2, SAGA-TASK-1, SAGA-JD-CPRHistoryLength-2
# SAGA-SEM-7, SAGA-ERR-NoSuccess
def test_a_job_is_saved_and_goes_back_to_any_of_its_checkpoints():
    raises(saga.DoesNotExist, started(shell("exit 0")).get_last_cpr)
    jd = counter("saved.out", last=100000, CPRPolicy="External", CPRFrequency="1")
    job = started(jd)
    count_to("saved.out", 3)
    made, at = [], []
    forms = [None, saga.SYNC, saga.ASYNC]
    for form in forms:
        before = len(lines("saved.out"))
        task = job.checkpoint(ttype=form) if form else job.checkpoint()
        if form:
            assert task.get_state() in (saga.DONE if form == saga.SYNC else saga.RUNNING,)
            task = task.get_result()
        made.append(task)
        at.append((before, len(lines("saved.out"))))
        count_to("saved.out", at[-1][1] + 3)
    late = job.checkpoint(ttype=saga.TASK)
    assert late.get_state() == saga.NEW and job.list_checkpoints() == made
    user, number = os.environ["SAGA_USER"], native(job)
    wanted = [f"gridcpr://localhost/{user}/{number}/{number}.{generation}.cpr" for generation in range(3)]
    assert [str(url) for url in made] == wanted
    assert job.get_last_cpr() == made[2] == job.get_last_cpr(ttype=saga.ASYNC).get_result()
    entries = [saga.cpr_entry(url, saga.Flags.None_) for url in made]
    assert [one.get_attribute("parent") for one in entries] == ["", str(made[0]), str(made[1])]
    assert entries[0].get_vector_attribute("childs") == [str(made[1])]
    for one in entries:
        text = {key: one.get_attribute(key) for key in one.list_attributes() if not one.attribute_is_vector(key)}
        assert text["mode"] == "full" and text["nfiles"] == "1" and text["ttl"] == "2500000"
        assert abs(float(text["time"]) - time.time()) < 90
        place = one.get_file(0)
        assert place.get_scheme() == "file" and os.path.getsize(place.get_path()) > 10000
        raises(saga.PermissionDenied, one.open_file, 0, saga.Flags.Write)
        raises(saga.IncorrectState, one.remove, about="newest") if one is entries[2] else None
    with entries[0].open_file(0) as image:
        assert image.read(8)
    mine = job.checkpoint(f"any:///{user}/own/deep/{user}.cpr")
    assert str(mine) == f"gridcpr://localhost/{user}/own/deep/{user}.cpr"
    raises(saga.IncorrectURL, job.checkpoint, "foo://x")
    # Killed right after the call, and gone on from there.
    with open("saved.out") as file:
        file.read()
    job.cancel()
    job.recover()
    assert job.get_state() == saga.RUNNING
    last = len(lines("saved.out"))
    count_to("saved.out", last + 2)
    # Two generations back, while it runs.
    job.recover(made[0])
    assert job.get_state() == saga.RUNNING
    until("it counts on from there", lambda: at[0][0] <= int(lines("saved.out")[-1]) <= at[2][0])
    first = job.checkpoint()
    job.recover(made[0], ttype=saga.SYNC).rethrow()
    second = job.checkpoint()
    assert set(entries[0].get_children()) == {made[1], first, second}
    # Another job is run by that.
    jd.set_attribute("Output", "other.out")
    other = SERVICE.create_job(jd)
    other.recover(made[1])
    assert other.get_state() == saga.RUNNING and native(other) != number
    job.cancel()
    theirs = other.checkpoint()
    assert f"/{native(other)}/" in str(theirs) and saga.cpr_entry(theirs, saga.Flags.None_).get_parent() == made[1]
    other.cancel()
    for wrong in ("any:///none.cpr", f"any:///{user}/none.cpr"):
        failed = job.recover(wrong, ttype=saga.ASYNC)
        for _ in range(2):
            raises(saga.DoesNotExist, failed.get_result)
    raises(saga.IncorrectURL, job.recover, "foo://x")
    raises(saga.BadParameter, job.recover, f"any:///{user}")
    # Links and copies do as well; what is damaged is refused.
    top = saga.cpr_dir(f"any:///{user}/{number}")
    top.link(f"{number}.0.cpr", "oldest")
    top.copy(f"{number}.1.cpr", "copy.cpr")
    image = entries[1].get_file(0).get_path()
    entries[1].remove()
    assert os.path.exists(image)
    job.recover(top.get_url().get_string() + "/oldest")
    # What it has written is as long again as it was at the next one, which goes on where its output was.
    count_to("saved.out", at[1][1] + 1)
    job.recover(top.get_url().get_string() + "/copy.cpr")
    assert job.get_state() == saga.RUNNING
    job.cancel()
    path = entries[0].get_file(0).get_path()
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(b"damage" * 100)
    raises(saga.NoSuccess, job.recover, made[0], about="altered")
    top.open("copy.cpr", saga.Flags.None_).remove()
    until("its image goes with the last name", lambda: not os.path.exists(image))


# SAGA-JD-CPRPolicy-4, SAGA-JD-CPRPolicy-5, SAGA-JD-CPRFrequency-1, SAGA-JD-CPRHistoryLength-1
# SAGA-JD-CPRBaseName-2, SAGA-JD-CPRTimeToLive-1, SAGA-JD-CPRTimeToLive-2, SAGA-CAP-B.3
def test_checkpoints_are_made_and_kept_as_the_description_says():
    timed = started(counter("timed.out", last=100000, CPRPolicy="Timed", CPRFrequency="1", CPRHistoryLength="3",
                            CPRSequence="Fi"))
    kept = started(counter("kept.out", last=100000, CPRTimeToLive="3"))
    single = started(counter("single.out", last=100000, CPRBaseName="last.cpr"))
    count_to("kept.out", 3)
    three = [kept.checkpoint() for _ in range(3)]
    begun = time.monotonic()
    saga.cpr_entry(three[1], saga.Flags.None_).set_attribute("ttl", "1000000")
    assert saga.cpr_entry(three[1], saga.Flags.None_).get_attribute("ttl") == "1000000"
    kept.cancel()
    assert time.monotonic() - begun > 2 or kept.list_checkpoints() == three
    count_to("single.out", 3)
    one = single.checkpoint()
    generations = [saga.cpr_entry(one, saga.Flags.None_).get_attribute("generation")]
    assert single.checkpoint() == one and single.list_checkpoints() == [one]
    generations.append(saga.cpr_entry(one, saga.Flags.None_).get_attribute("generation"))
    assert generations == ["0", "1"]
    single.recover(one)
    single.cancel()
    outside = timed.checkpoint()
    until("there were six", lambda: timed.list_checkpoints() and int(str(timed.get_last_cpr()).split(".")[-2]) >= 6)
    listed = timed.list_checkpoints()
    assert 1 <= len(listed) <= 4 and outside not in listed, listed
    times = [float(saga.cpr_entry(url, saga.Flags.None_).get_attribute("time")) for url in listed[-2:]]
    assert times[1] - times[0] > 0.5
    numbers = [int(str(url).split(".")[-2]) for url in listed]
    assert numbers == sorted(numbers)
    timed.recover(listed[-1])
    timed.cancel()
    until("those whose time is over have gone", lambda: kept.list_checkpoints() == [three[1]])
    kept.recover(three[1])
    kept.cancel()


# SAGA-JS-2, SAGA-JOB-recover-4, SAGA-SEM-11, SAGA-SEM-12, SAGA-CAP-A.2, SAGA-CAP-A.3, SAGA-CAP-A.4, SAGA-CAP-A.5
# SAGA-JOB-metric-Checkpoint, SAGA-JOB-metric-Checkpointed, SAGA-JOB-metric-Recover, SAGA-JOB-metric-Recovered
# SAGA-JOB-metric-5, SAGA-MON-3, SAGA-MON-8, SAGA-JS-11, SAGA-JD-CPRPolicy-3, SAGA-SEM-10
def test_programs_are_asked_for_checkpoints_and_recovery():
    raises(saga.NoSuccess, SERVICE.get_self)
    start = program("app.out", "application", "started", CPRPolicy="Internal", CPRTimeToLive="500000")
    again = program("app.out", "application", "recovered", CPRPolicy="Internal", CPRTimeToLive="600000")
    job = SERVICE.create_job(start, again)
    for name in ("Checkpoint", "Checkpointed", "Recover", "Recovered"):
        metric = job.get_metric(name)
        assert [metric.get_attribute(key) for key in ("Unit", "Value", "Mode")] == ["1", "", "ReadWrite"]
        assert metric.get_attribute("Type") == ("Trigger" if name.endswith("ed") else "String")
        raises(saga.IncorrectState, metric.fire)
    job.run()
    until("the program listens", lambda: "ready started" in lines("app.out"))
    told, recovered = [], []

    def checkpointed(about, metric, context):
        told.append((about, metric.get_attribute("Name"), context.get_type(), len(job.list_checkpoints())))
        return True

    job.add_callback("Checkpointed", checkpointed)
    job.add_callback("Recovered", values(recovered))
    user = os.environ["SAGA_USER"]
    request = job.get_metric("Checkpoint")
    url = f"gridcpr://localhost/{user}/app/first.cpr"
    request.set_attribute("Value", url)
    time.sleep(0.3)
    assert not told and request.get_attribute("Value") == url
    request.fire()
    until("the checkpoint is there", lambda: told)
    assert told == [(job, "Checkpointed", "Context", 1)]
    first = saga.cpr_entry(url, saga.Flags.None_)
    assert [str(one) for one in job.list_checkpoints()] == [url] and first.get_file_num() == 6
    assert first.open_file(0).read() == b"state of started"
    # What the program has made and what the grid has made, in one name space.
    image = job.checkpoint()
    assert job.list_checkpoints() == [saga.Url(url), image]
    other = saga.cpr_entry(image, saga.Flags.None_)
    shown = [{key for key in one.list_attributes()} & set(saga.CprEntry.ATTRIBUTES) for one in (first, other)]
    assert shown[0] == shown[1] == set(saga.CprEntry.ATTRIBUTES)
    # A metric of its own.
    progress = job.get_metric("progress")
    assert progress.get_attribute("Value") == "0"
    progress.set_attribute("Value", "50")
    progress.fire()
    until("the program is steered", lambda: "steered to 50" in lines("app.out"))
    recover = job.get_metric("Recover")
    recover.set_attribute("Value", url)
    recover.fire()
    until("it has recovered", lambda: recovered)
    assert f"asked to recover from {url}: state of started" in lines("app.out")
    raises(saga.PermissionDenied, job.get_metric("job.state").fire)
    # Another program, with what was described for recovery.
    job.recover(url)
    until("the other program runs", lambda: "ready recovered" in lines("app.out"))
    text = lines("app.out")
    assert f"recover {url}: state of started" in text
    for word, ttl in (("started", "500000"), ("recovered", "600000")):
        known = json.loads(next(line for line in text if line.startswith(f"environment {word} ")).split(" ", 2)[2])
        wanted = {"POLICY": "Internal", "FREQUENCY": "86400", "SEQUENCE": "F", "TIME_TO_LIVE": ttl,
                  "HISTORY_LENGTH": "-1",
                  "BASE_NAME": known["SAGA_CPR_BASE_NAME"]}
        assert all(known[f"SAGA_CPR_{key}"] == value for key, value in wanted.items()), known
        assert known["SAGA_CPR_BASE_LOCATION"].startswith(f"gridcpr://localhost/{user}/")
    assert job.get_state() == saga.RUNNING and saga.Url(url) in job.list_checkpoints()
    job.cancel()
    raises(saga.IncorrectState, job.get_metric("Checkpoint").fire)


def application(word):
    """The program of the test above: it keeps its own checkpoints."""
    kept = {key: value for key, value in os.environ.items() if key.startswith("SAGA_CPR_")}
    print("environment", word, json.dumps(kept, sort_keys=True), flush=True)
    job = SERVICE.get_self()

    def load(url):
        return saga.cpr_entry(url, saga.Flags.None_).open_file(0).read().decode()

    if "SAGA_CPR_RECOVER" in os.environ:
        print(f"recover {os.environ['SAGA_CPR_RECOVER']}: {load(os.environ['SAGA_CPR_RECOVER'])}", flush=True)

    def save(about, metric, context):
        url = saga.Url(metric.get_attribute("Value"))
        with saga.cpr_entry(url) as entry:
            # Four ranks, with 0, 1, 2 and 3 files.
            for rank in range(4):
                for number in range(rank):
                    path = os.path.abspath(f"state-{rank}-{number}")
                    with open(path, "w") as file:
                        file.write(f"state of {word}")
                    entry.add_file(path)
            entry.set_attribute("job", os.environ["SAGA_JOB_ID"])
        job.get_metric("Checkpointed").fire()
        return True

    def recover(about, metric, context):
        url = metric.get_attribute("Value")
        print(f"asked to recover from {url}: {load(url)}", flush=True)
        job.get_metric("Recovered").fire()
        return True

    def steer(about, metric, context):
        print("steered to", metric.get_attribute("Value"), flush=True)
        return True

    job.add_callback("Checkpoint", save)
    job.add_callback("Recover", recover)
    job.add_metric(saga.Metric("progress", "percent", "ReadWrite", "1", "Int", "0"))
    job.add_callback("progress", steer)
    print("ready", word, flush=True)
    threading.Event().wait()


# SAGA-JS-7, SAGA-JS-1
def test_the_manager_is_found_by_its_url():
    for url in ("", "any://", "fork://localhost", os.environ["GRIDCPR_GRID"]):
        job = saga.cpr_job_service(url).create_job(shell("exit 3"))
        assert isinstance(job, saga.CprJob) and job.get_state() == saga.NEW
    job.run()
    assert job.wait() and job.get_attribute("ExitCode") == "3"
    for bad in ("unix:///nowhere/cprd.sock", "https://127.0.0.1:1", "slurm://", "fork://elsewhere"):
        raises(saga.BadParameter, saga.cpr_job_service, bad)
    raises(saga.IncorrectURL, saga.cpr_job_service, "fork://a b")


# SAGA-JD-Core-Interactive, SAGA-JOB-Core-streams, SAGA-JS-8
def test_interactive_jobs_are_talked_to():
    words = "/bin/sh -c 'while read line; do echo \"got $line\"; echo bad >&2; done'"
    job, stdin, stdout, stderr = SERVICE.run_job(words, "n1")
    stdin.write(b"one\n")
    assert stdout.read_line(60) == b"got one\n" and stderr.read_line(60) == b"bad\n"
    stdin.write(b"two\n")
    assert stdout.read_line(60) == b"got two\n"
    job.checkpoint()
    stdin.write(b"three\n")
    assert stdout.read_line(60) == b"got three\n"
    raises(saga.Timeout, stdout.read_line, 0.05)
    stdin.close()
    assert job.wait() and job.get_state() == saga.DONE and stdout.read() == b""
    plain = started(shell("exit 0"))
    for call in (plain.get_stdin, plain.get_stdout, plain.get_stderr):
        raises(saga.IncorrectState, call)
    raises(saga.BadParameter, SERVICE.create_job, shell("true", "out", Interactive="True"), about="Interactive")
    raises(saga.BadParameter, SERVICE.run_job, "'")
    never = started(shell("exit 0", CandidateHosts=["nowhere"]))
    assert never.wait(0.3) is False
    never.cancel()


# SAGA-JD-Core-TotalCPUCount, SAGA-JD-Core-TotalPhysicalMemory, SAGA-JD-Core-TotalCPUTime
def test_jobs_get_what_they_ask_for_or_wait():
    node = SERVICE._grid.get("/v1/nodes")["items"][0]["info"]
    fits = started(shell("sleep 100", TotalCPUCount=str(node["slots"] - 1), TotalPhysicalMemory="100.4",
                         TotalCPUTime="7200", WallTimeLimit="3600"))
    until("it runs", lambda: fits.get_metric("job.state_detail").get_attribute("Value") == "Running")
    assert (fits._doc()["spec"]["slots"], fits._doc()["spec"]["memory_mb"]) == (node["slots"] - 1, 100)
    assert (fits._doc()["spec"]["cpu_time_s"], fits._doc()["spec"]["time_limit_s"]) == (7200, 3600)
    waits = started(shell("true", TotalCPUCount="2"))
    large = started(shell("true", TotalPhysicalMemory=str(node["memory_mb"] + 1)))
    limited = started(shell("sleep 100", WallTimeLimit="1"))
    assert limited.wait() and limited.get_state() == saga.FAILED
    assert waits.get_metric("job.state_detail").get_attribute("Value") == "Queued" and large.wait(0) is False
    fits.cancel()
    assert waits.wait() and large.wait(0) is False
    large.cancel()


# SAGA-JD-Core-Cleanup
def test_what_a_job_has_written_is_removed_where_that_is_wanted():
    script = "echo out; echo err >&2; ls {name}.out {name}.err > {name}.seen; exit 3"
    for cleanup in ("True", "False", "Default"):
        name = f"cleanup-{cleanup}"
        job = started(shell(script.format(name=name), f"{name}.out", Error=f"{name}.err", Cleanup=cleanup))
        assert job.wait() and job.get_attribute("ExitCode") == "3"
        assert lines(f"{name}.seen") == [f"{name}.err", f"{name}.out"]
        assert [os.path.exists(f"{name}.{end}") for end in ("out", "err")] == [cleanup != "True"] * 2


# SAGA-JD-Core-SPMDVariation
def test_parallel_jobs_are_one_world():
    if not shutil.which("mpirun"):
        print("SKIPPED a job of MPI: there is no mpirun", file=sys.stderr)
        return
    script = "echo $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE$PMI_SIZE"
    job = started(shell(script, "mpi.out", SPMDVariation="MPI", NumberOfProcesses="4"))
    assert job.wait() and job.get_state() == saga.DONE, lines("mpi.out")
    got = sorted(line for line in lines("mpi.out") if " of 4" in line)
    assert len(got) == 4 and len(set(got)) in (1, 4), got


# SAGA-JOB-1
def test_a_job_of_the_core_is_one_that_can_be_saved():
    jd = saga.job_description()
    assert not isinstance(jd, saga.CprJobDescription)
    jd.set_attribute("Executable", "/bin/sh")
    jd.set_vector_attribute("Arguments", ["-c", COUNT.format(last=60, code=4)])
    jd.set_attribute("Output", "core.out")
    job = SERVICE.create_job(jd)
    assert isinstance(job, saga.CprJob)
    job.run()
    count_to("core.out", 3)
    url = job.checkpoint()
    assert job.list_checkpoints() == [url]
    job.suspend()
    job.resume()
    job.recover(url)
    assert job.wait() and job.get_attribute("ExitCode") == "4" and job.get_state() == saga.FAILED
    assert lines("core.out")[-1] == "60"


# SAGA-JOB-Core-signal, SAGA-JOB-Core-metric-signal, SAGA-JD-CPRSequence-8
def test_signals_reach_a_job_also_when_it_was_saved():
    script = "trap 'echo one' USR1; trap 'echo two' USR2; echo ready; while :; do sleep 0.1; done"
    job = SERVICE.create_job(shell(script, "signals.out", CPRPolicy="External", CPRSequence="Fi"))
    heard = []
    raises(saga.IncorrectState, job.signal, 10)
    job.run()
    job.add_callback("job.signal", values(heard))
    until("it is ready", lambda: "ready" in lines("signals.out"))
    for bad in (0, -1, 9, 19, 65, "USR1", True):
        raises(saga.BadParameter, job.signal, bad)
    assert job.get_metric("job.signal").get_attribute("Value") == ""
    job.signal(10)
    until("it has got one", lambda: lines("signals.out")[-1] == "one")
    until("that is told", lambda: heard == ["10"])
    assert job.get_metric("job.signal").get_attribute("Value") == "10"
    made = [job.checkpoint(), job.checkpoint()]
    job.suspend()
    job.signal(12)
    time.sleep(0.3)
    assert lines("signals.out")[-1] == "one"
    job.resume()
    until("it has got another", lambda: lines("signals.out")[-1] == "two")
    # The sequence is not followed, and every one of them is good.
    for url in made:
        assert saga.cpr_entry(url, saga.Flags.None_).get_attribute("mode") == "full"
        job.recover(url)
        before = lines("signals.out").count("one")
        job.signal(10)
        until("it has got one more", lambda: lines("signals.out").count("one") > before)
    until("all are told", lambda: heard == ["10", "12", "10", "10"])
    job.cancel()
    raises(saga.IncorrectState, job.signal, 10)


# SAGA-JOB-Core-metric-cpu_time, SAGA-JOB-Core-metric-memory_use
def test_what_a_job_uses_is_seen_and_its_time_never_falls():
    jd = saga.cpr_job_description()
    jd.set_attribute("Executable", "/usr/bin/python3")
    work = "import time\nheld = b'x' * (64 << 20)\nwhile True:\n    sum(range(100000))\n    time.sleep(0.02)"
    jd.set_vector_attribute("Arguments", ["-c", work])
    job = SERVICE.create_job(jd)
    names = ("job.cpu_time", "job.memory_use", "job.vmemory_use")
    assert [job.get_metric(name).get_attribute("Unit") for name in names] == ["seconds", "megabyte", "megabyte"]
    job.run()

    def now(name):
        return float(job.get_metric(name).get_attribute("Value"))

    until("its time is seen", lambda: now("job.cpu_time") > 0.3)
    until("its memory is seen", lambda: now("job.memory_use") >= 64)
    assert now("job.vmemory_use") >= now("job.memory_use")
    job.checkpoint()
    seen = [now("job.cpu_time")]
    job.recover()
    until("it goes on", lambda: seen.append(now("job.cpu_time")) or seen[-1] > seen[0] + 0.2)
    assert seen == sorted(seen), seen
    job.cancel()
    until("it holds none", lambda: job._used()["memory"] == 0)
    assert now("job.memory_use") >= 64 and now("job.cpu_time") >= seen[-1]


# SAGA-JD-Core-Queue
def test_a_queue_is_of_the_nodes_that_their_operator_has_put_into_it():
    job = started(shell("true", Queue="long"))
    assert job.wait() and job.get_state() == saga.DONE
    assert job._doc()["spec"]["requires"] == {"queue.long": "yes"}
    raises(saga.BadParameter, SERVICE.create_job, shell("true", Queue="short"), about="short")


# SAGA-TASK-6
def test_a_cancelled_checkpoint_leaves_the_job_alone():
    job = started(counter("left.out"))
    count_to("left.out", 2)
    first = job.checkpoint()
    task = job.checkpoint(ttype=saga.ASYNC)
    task.cancel()
    assert task.get_state() == saga.CANCELED and job.get_state() == saga.RUNNING
    now = len(lines("left.out"))
    count_to("left.out", now + 5)
    # Only what is whole has a name.
    assert job.list_checkpoints()[0] == first
    for url in job.list_checkpoints():
        assert os.path.getsize(saga.cpr_entry(url, saga.Flags.None_).get_file(0).get_path()) > 10000
    job.recover()
    job.cancel()


# SAGA-ERR-NotImplemented
def test_what_the_grid_cannot_do_is_said():
    raises(saga.NotImplemented, SERVICE.create_job, shell("true", SPMDVariation="PVM"), about="PVM")
    job = started(shell("sleep 100"))
    raises(saga.NotImplemented, job.get_metric("job.performance").get_attribute, "Value")
    job.cancel()


# SAGA-ERR-Timeout
def test_a_grid_that_does_not_answer_is_given_up():
    import socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind("silent.sock")
        silent.listen()
        session = saga.Session()
        session.timeout = 0.2
        raises(saga.Timeout, saga.cpr_job_service, f"unix://{os.path.abspath('silent.sock')}", session)


if __name__ == "__main__":
    if sys.argv[1:2] == ["application"]:
        application(sys.argv[2])
    else:
        main(globals())
