"""URLs, attributes, errors, descriptions, sessions, tasks and metrics: what needs no grid."""

import os
import tempfile
import threading
import time

from check import main, raises, until
from gridcpr import saga


# SAGA-URL-4
def test_urls_are_parsed_resolved_and_escaped():
    url = saga.Url("gridcpr://bob@grid.example:7700/a%20b/c?x=1")
    parts = (url.get_scheme(), url.get_userinfo(), url.get_host(), url.get_port(), url.get_path(), url.get_query())
    assert parts == ("gridcpr", "bob", "grid.example", 7700, "/a b/c", "x=1"), parts
    assert str(url) == "gridcpr://bob@grid.example:7700/a%20b/c?x=1"
    base = saga.Url("gridcpr://h/a/b/")
    for relative, whole in [
        ("c.cpr", "gridcpr://h/a/b/c.cpr"), ("../c", "gridcpr://h/a/c"), ("./x/./y", "gridcpr://h/a/b/x/y"),
        ("/z", "gridcpr://h/z"), ("any:///q", "any:///q"), ("%41", "gridcpr://h/a/b/A"), ("", "gridcpr://h/a/b"),
        ("../../../../e", "gridcpr://h/e"), ("a%2Fb", "gridcpr://h/a/b/a/b"),
    ]:
        assert str(saga.Url(relative).resolve(base)) == whole, (relative, str(saga.Url(relative).resolve(base)))
    for bad in ["a b", "%zz", "1x:/a", "gridcpr://h:port/", "gridcpr://h:99999/", "<x>", "gridcpr://h^/", "a%00"]:
        raises(saga.IncorrectURL, saga.Url, bad)
    other = url.translate("any")
    assert other.get_scheme() == "any" and url.get_scheme() == "gridcpr"


def description():
    jd = saga.cpr_job_description()
    jd.set_attribute("Executable", "/bin/sim")
    return jd


CPR = {
    "CPRPolicy": ("Timed", "Sometimes"), "CPRFrequency": ("5", "often"), "CPRSequence": ("FIiI", "FX"),
    "CPRTimeToLive": ("60", "soon"), "CPRHistoryLength": ("3", "many"),
    "CPRBaseLocation": ("any:///#UserID#/x/#JobID#/", "http://x/"), "CPRBaseName": ("#JobID#-#Generation#", "a/b"),
}
VALUES = {
    "Executable": "sim", "Arguments": ["a b", "'"], "SPMDVariation": "None", "TotalCPUCount": "4",
    "NumberOfProcesses": "3",
    "ProcessesPerHost": "2", "ThreadsPerProcess": "8", "Environment": ["A=b=c"], "WorkingDirectory": "/tmp",
    "Interactive": "False", "Input": "in", "Output": "out", "Error": "err",
    "FileTransfer": ["a > area:b", "c << area:d"],
    "Cleanup": "False", "JobStartTime": "1764241600", "TotalCPUTime": "60", "WallTimeLimit": "70",
    "TotalPhysicalMemory": "100.5", "CPUArchitecture": ["x86_64"], "OperatingSystemType": ["LINUX"],
    "CandidateHosts": ["n1"], "Queue": "q", "JobContact": ["http://x/"],
}


# SAGA-CAP-A.1, SAGA-JD-1, SAGA-JD-2, SAGA-ATTR-2, SAGA-JD-CPRPolicy-1, SAGA-JD-CPRSequence-1
def test_a_description_takes_every_attribute_and_gives_it_back():
    jd = saga.cpr_job_description()
    for key, value in VALUES.items():
        if isinstance(value, list):
            jd.set_vector_attribute(key, value)
            assert jd.get_vector_attribute(key) == value
            raises(saga.IncorrectState, jd.set_attribute, key, "x", about=key)
            raises(saga.IncorrectState, jd.get_attribute, key, about=key)
        else:
            jd.set_attribute(key, value)
            assert jd.get_attribute(key) == value
            raises(saga.IncorrectState, jd.set_vector_attribute, key, ["x"], about=key)
            raises(saga.IncorrectState, jd.get_vector_attribute, key, about=key)
    for key, (good, bad) in CPR.items():
        jd.set_attribute(key, good)
        raises(saga.BadParameter, jd.set_attribute, key, bad, about=key)
        assert jd.get_attribute(key) == good and isinstance(jd.get_attribute(key), str)
    for policy in ["External", "Internal", "Timed"]:
        jd.set_attribute("CPRPolicy", policy)
        assert jd.get_attribute("CPRPolicy") == policy
    assert sorted(jd.list_attributes()) == sorted([*VALUES, *CPR])


# SAGA-JD-3
def test_what_was_never_set_reads_as_its_default():
    jd = saga.cpr_job_description()
    got = [jd.get_attribute(key) for key in CPR]
    wanted = ["", "86400", "", "2500000", "-1", "any:///#UserID#/#JobID#/", "#JobID#.#Generation#.cpr"]
    assert got == wanted, got
    defaults = {"TotalCPUCount": "1", "NumberOfProcesses": "1", "ProcessesPerHost": "1", "ThreadsPerProcess": "1",
                "WorkingDirectory": ".", "Interactive": "False", "Cleanup": "Default"}
    assert {key: jd.get_attribute(key) for key in defaults} == defaults


# SAGA-JD-CPRFrequency-3, SAGA-ATTR-6
def test_values_that_are_no_good_are_refused_by_name():
    jd = description()
    for bad in ["0", "-1", "often", "", "1.5", None, ["1"]]:
        raises(saga.BadParameter, jd.set_attribute, "CPRFrequency", bad, about="CPRFrequency")
    assert jd.get_attribute("CPRFrequency") == "86400"
    for key, bad in [("JobStartTime", "soon"), ("Interactive", "yes"), ("Cleanup", "Maybe"), ("TotalCPUCount", "0"),
                     ("TotalPhysicalMemory", "much"), ("CPRBaseLocation", "any:// x")]:
        raises(saga.BadParameter, jd.set_attribute, key, bad, about=key)
    raises(saga.BadParameter, jd.set_vector_attribute, "Environment", ["A"], about="Environment")
    raises(saga.BadParameter, jd.set_vector_attribute, "FileTransfer", ["a"], about="FileTransfer")
    raises(saga.BadParameter, jd.set_vector_attribute, "Arguments", "a b", about="Arguments")


# SAGA-ATTR-3, SAGA-ATTR-4
def test_attributes_are_found_listed_and_removed():
    jd = description()
    assert sorted(jd.find_attributes("CPR*")) == sorted(CPR)
    assert jd.find_attributes("CPR*=86*", "Exec*=/bin/*") == ["Executable", "CPRFrequency"]
    assert jd.find_attributes("nothing*") == []
    jd.set_attribute("CPRFrequency", 7)
    jd.remove_attribute("CPRFrequency")
    assert jd.get_attribute("CPRFrequency") == "86400"
    jd.remove_attribute("Executable")
    assert not jd.attribute_exists("Executable")
    raises(saga.DoesNotExist, jd.get_attribute, "Executable", about="Executable")
    raises(saga.DoesNotExist, jd.remove_attribute, "Executable", about="Executable")
    for call in (jd.get_attribute, jd.get_vector_attribute, jd.remove_attribute, jd.attribute_is_vector):
        raises(saga.DoesNotExist, call, "Foo", about="Foo")
    raises(saga.DoesNotExist, jd.set_attribute, "Foo", "x", about="Foo")
    metric = saga.Metric("m", mode="ReadOnly")
    raises(saga.PermissionDenied, metric.set_attribute, "Name", "n", about="Name")
    raises(saga.PermissionDenied, metric.remove_attribute, "Name", about="Name")


# SAGA-OBJ-1
def test_objects_have_identities_and_copies_are_deep():
    jd = description()
    jd.set_vector_attribute("Arguments", ["1"])
    other = jd.clone()
    assert other.get_id() != jd.get_id() and len(jd.get_id()) > 10
    assert other.get_type() == jd.get_type() == "CprJobDescription"
    assert jd.get_session() is other.get_session() is saga.Session.default()
    other.set_vector_attribute("Arguments", ["2"])
    other.set_attribute("CPRPolicy", "Timed")
    assert jd.get_vector_attribute("Arguments") == ["1"] and jd.get_attribute("CPRPolicy") == ""
    for kind in (saga.Task(jd, lambda: None), saga.TaskContainer()):
        assert kind.get_id() and kind.get_type() and kind.get_session()


# SAGA-CTX-1
def test_contexts_have_defaults_or_say_that_there_are_none():
    unix = saga.Context("unix")
    unix.set_defaults()
    import pwd
    assert unix.get_attribute("UserID") == pwd.getpwuid(os.geteuid()).pw_name
    here = os.path.abspath(__file__)
    names = {"GRIDCPR_CA": "CertRepository", "GRIDCPR_CERTIFICATE": "UserCert", "GRIDCPR_KEY": "UserKey"}
    for name in [*names, "GRIDCPR_TOKEN_FILE"]:
        os.environ.pop(name, None)
    raises(saga.NoSuccess, saga.Context("x509").set_defaults, about="GRIDCPR_CA")
    raises(saga.NoSuccess, saga.Context("token").set_defaults, about="GRIDCPR_TOKEN_FILE")
    for name in names:
        os.environ[name] = here
    x509 = saga.Context("x509")
    x509.set_defaults()
    assert {x509.get_attribute(key) for key in names.values()} == {here}
    os.environ["GRIDCPR_CERTIFICATE"] = "/nowhere"
    raises(saga.NoSuccess, saga.Context("x509").set_defaults, about="/nowhere")
    with open("token", "w") as file:
        file.write("secret\n")
    os.environ["GRIDCPR_TOKEN_FILE"] = "token"
    token = saga.Context("token")
    token.set_defaults()
    assert token.get_attribute("UserPass") == "secret"
    home = os.environ["HOME"] = tempfile.mkdtemp(dir=".")
    raises(saga.NoSuccess, saga.Context("ssh").set_defaults, about=".ssh")
    os.makedirs(f"{home}/.ssh")
    open(f"{home}/.ssh/id_ed25519", "w").close()
    ssh = saga.Context("ssh")
    ssh.set_defaults()
    assert ssh.get_attribute("UserKey").endswith(".ssh/id_ed25519")
    raises(saga.BadParameter, saga.Context, "kerberos", about="kerberos")
    raises(saga.NoSuccess, saga.Context().set_defaults)
    for name in [*names, "GRIDCPR_TOKEN_FILE"]:
        os.environ.pop(name, None)
    session = saga.Session(default=False)
    assert session.list_contexts() == []
    session.add_context(token)
    token.set_attribute("UserPass", "other")
    assert [context.get_attribute("UserPass") for context in session.list_contexts()] == ["secret"]
    raises(saga.DoesNotExist, session.remove_context, token)
    session.remove_context(session.list_contexts()[0])
    assert session.list_contexts() == []
    raises(saga.BadParameter, session.add_context, saga.Context())


class Thing(saga.SagaObject):
    """An object with a method that has further forms."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    from gridcpr.saga.tasks import asynchronous

    @asynchronous
    def work(self, value):
        self.go.wait(60)
        if value is None:
            raise saga.DoesNotExist("there is no value", self)
        return value


# SAGA-TASK-2, SAGA-TASK-3, SAGA-TASK-4, SAGA-TASK-5, SAGA-TASK-7
def test_tasks_go_through_their_states():
    thing = Thing()
    task = thing.work(5, ttype=saga.TASK)
    states = []
    task.add_callback("task.state", lambda about, metric, context: states.append(metric.get_attribute("Value")) or True)
    assert task.get_state() == saga.NEW and task.get_object() is thing
    raises(saga.IncorrectState, task.wait)
    raises(saga.IncorrectState, task.cancel)
    task.run()
    raises(saga.IncorrectState, task.run)
    assert task.get_state() == saga.RUNNING and not task.wait(0) and not task.wait(0.05)
    thing.go.set()
    assert task.get_result() == 5 and task.get_state() == saga.DONE and task.wait(0)
    task.rethrow()
    task.cancel()
    assert task.get_state() == saga.DONE
    until("the callbacks have run", lambda: states == ["Running", "Done"])
    failed = thing.work(None, ttype=saga.SYNC)
    assert failed.get_state() == saga.FAILED
    for _ in range(2):
        assert raises(saga.DoesNotExist, failed.rethrow).get_object() is thing
        raises(saga.DoesNotExist, failed.get_result)
    assert thing.work(6, ttype=saga.SYNC).get_state() == saga.DONE
    thing.go.clear()
    slow = thing.work(7, ttype=saga.ASYNC)
    assert slow.get_state() == saga.RUNNING
    slow.cancel()
    assert slow.get_state() == saga.CANCELED and slow.wait()
    raises(saga.IncorrectState, slow.get_result)
    thing.go.set()
    raises(saga.BadParameter, thing.work, 1, ttype="Later")


# SAGA-TASK-8, SAGA-TASK-9
def test_a_container_runs_waits_for_and_cancels_all():
    container = saga.TaskContainer()
    for call in (container.run, container.wait, container.cancel):
        raises(saga.DoesNotExist, call)
    things = [Thing() for _ in range(10)]
    tasks = [thing.work(number, ttype=saga.TASK) for number, thing in enumerate(things)]
    cookies = [container.add(task) for task in tasks]
    assert len(set(cookies)) == 10 and container.add(tasks[0]) == cookies[0] and container.size() == 10
    assert container.get_task(cookies[3]) is tasks[3] and container.remove(cookies[3]) is tasks[3]
    raises(saga.DoesNotExist, container.remove, cookies[3])
    container.run()
    assert container.get_states() == ["Running"] * 9
    assert container.wait(saga.ANY, 0) is None and container.wait(saga.ALL, 0.05) is None
    ended = []
    for thing, task in zip(things, tasks):
        if task is not tasks[3]:
            thing.go.set()
            ended.append(container.wait(saga.ANY))
            assert ended[-1] is task
    assert container.size() == 0 and all(task.get_state() == saga.DONE for task in ended)
    raises(saga.DoesNotExist, container.wait)
    slow = Thing().work(1, ttype=saga.ASYNC)
    container.add(slow)
    container.cancel()
    assert slow.get_state() == saga.CANCELED and container.wait() is slow


# SAGA-MON-2, SAGA-MON-4, SAGA-MON-5, SAGA-MON-6, SAGA-MON-7
def test_callbacks_queue_stay_and_are_removed():
    metric = saga.Metric("steps", "how far it is", "ReadWrite", "1", "Int", "0")
    keys = ["Name", "Description", "Mode", "Unit", "Type", "Value"]
    assert [metric.get_attribute(key) for key in keys] == ["steps", "how far it is", "ReadWrite", "1", "Int", "0"]
    seen, once, inside, overlaps = [], [], [], []

    def stays(about, fired, context):
        if inside:
            overlaps.append(1)
        inside.append(1)
        time.sleep(0.001)
        seen.append(fired.get_attribute("Value"))
        inside.pop()
        return True

    metric.add_callback(stays)
    metric.add_callback(lambda *told: once.append(told) and False)
    for number in range(100):
        metric.set_attribute("Value", number)
        metric.fire()
    until("all have been told", lambda: len(seen) == 100)
    assert seen == [str(number) for number in range(100)] and not overlaps
    assert len(once) == 1
    begun, goes = threading.Event(), threading.Event()
    calls = []

    def slow(*told):
        calls.append("begun")
        begun.set()
        goes.wait(60)
        time.sleep(0.05)
        calls.append("done")
        return True

    cookie = metric.add_callback(slow)
    metric.fire()
    metric.fire()
    assert begun.wait(60)
    threading.Timer(0.05, goes.set).start()
    metric.remove_callback(cookie)
    assert calls == ["begun", "done"], calls
    metric.fire()
    time.sleep(0.05)
    assert calls == ["begun", "done"]
    raises(saga.BadParameter, metric.remove_callback, cookie)
    raises(saga.PermissionDenied, saga.Metric("r", mode="ReadOnly").fire)
    raises(saga.IncorrectState, saga.Metric("f", mode="Final").fire)
    raises(saga.BadParameter, saga.Metric, "x", mode="Sometimes")


# SAGA-ATTR-1, SAGA-ATTR-5
def test_attributes_say_truly_what_they_are():
    jd = description()
    for key, known in saga.CprJobDescription.ATTRIBUTES.items():
        assert jd.attribute_is_vector(key) is (key in VALUES and isinstance(VALUES[key], list)), key
        assert jd.attribute_is_writable(key) and not jd.attribute_is_readonly(key) and jd.attribute_is_removable(key)
        assert jd.attribute_exists(key) is (key == "Executable" or known.default is not None)
    job = saga.CprJob.ATTRIBUTES
    assert len(job) == 9 and not any(known.writable for known in job.values())
    assert [key for key, known in job.items() if known.vector] == ["ExecutionHosts"]
    writable = {key for key, known in saga.CprEntry.ATTRIBUTES.items() if known.writable}
    assert writable == {"ttl", "mode"}
    metric = saga.Metric("m", mode="ReadWrite")
    assert metric.attribute_is_writable("Value") and metric.attribute_is_readonly("Name")
    assert saga.Metric("m", mode="ReadOnly").attribute_is_readonly("Value")
    for key, value in {"Executable": "s", "TotalCPUCount": "3", "TotalPhysicalMemory": "1.5", "Interactive": "True",
                       "JobStartTime": "17.5", "CPRPolicy": "Timed"}.items():
        jd.set_attribute(key, value)
        assert jd.get_attribute(key) == value


# SAGA-ERR-1
def test_errors_have_a_class_a_message_and_an_object():
    jd = description()
    error = raises(saga.BadParameter, jd.set_attribute, "CPRPolicy", "Sometimes")
    assert error.get_type() == "BadParameter" and "Sometimes" in error.get_message() and error.get_object() is jd
    classes = ["NotImplemented", "IncorrectURL", "BadParameter", "AlreadyExists", "DoesNotExist", "IncorrectState",
               "PermissionDenied", "AuthorizationFailed", "AuthenticationFailed", "Timeout", "NoSuccess"]
    for name in classes:
        kind = getattr(saga, name)
        assert issubclass(kind, saga.SagaException) and kind("text", jd).get_type() == name
        assert kind.__bases__ == (saga.SagaException,)
        assert kind("text", jd).get_object() is jd and str(kind("text")) == "text"
    raises(saga.DoesNotExist, saga.NoSuccess("text").get_object)


if __name__ == "__main__":
    main(globals())
