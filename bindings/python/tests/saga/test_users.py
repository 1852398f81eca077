"""Users who share a grid: what the owner allows, what others may do then, and by which credentials they are known."""

import os
import sys

from check import raises
from gridcpr import saga
from gridcpr.saga import Flags, permissions

PLACE = "any:///shared-by-nobody"
NAMES = ["closed", "seen", "read", "written", "own"]


def files(one):
    path = os.path.abspath(one.get_name() + ".data")
    with open(path, "w") as file:
        file.write("data")
    one.add_file(path)


def owner():
    top = saga.cpr_dir(PLACE, Flags.CreateParents)
    top.permissions_allow("daemon", permissions.READ)
    for name, allowed in zip(NAMES, (0, permissions.QUERY, permissions.READ,
                                     permissions.READ | permissions.WRITE, permissions.OWNER)):
        one = top.open(name, Flags.Create)
        files(one)
        if allowed:
            one.permissions_allow("daemon", allowed)
            assert one.permissions_check("daemon", allowed)
    top.make_dir("private")
    top.open("private/a.cpr", Flags.Create)
    assert not top.open("closed", Flags.None_).permissions_check("daemon", permissions.READ)
    group = top.open("group", Flags.Create)
    group.permissions_allow("group-daemon", permissions.READ)
    star = top.open("star", Flags.Create)
    star.permissions_allow("*", permissions.READ)
    gone = top.open("gone", Flags.Create)
    gone.permissions_allow("daemon", permissions.ALL)
    gone.permissions_deny("daemon", permissions.ALL)


def other():
    top = saga.cpr_dir(PLACE)
    assert {str(url) for url in top.list()} >= set(NAMES)
    denied = saga.PermissionDenied
    for name in ("closed", "gone"):
        raises(denied, top.open, name, Flags.None_)
        for call in (top.get_parent, top.list_files, top.get_file_num, top.get_children, top.remove_parent,
                     top.create_child, top.is_entry, top.read_link, top.remove):
            error = raises(denied, call, name)
            assert isinstance(error.get_object(), (saga.CprDir, saga.CprEntry)), error.get_object()
        for call in (top.add_file, top.set_parent, top.set_child, top.copy, top.move, top.link):
            raises(denied, call, name, "read")
        raises(denied, top.get_file, name, 0)
        raises(denied, top.remove_file, name, 0)
        raises(denied, top.update_file, name, 0, "file://localhost/x")
        raises(denied, top.open_file, name, 0)
        raises(denied, top.stage, name, os.getcwd())
    for name in ("read", "star", "group"):
        one = top.open(name, Flags.None_)
        assert one.list_files() is not None and one.get_attribute("mode") == "full"
        raises(denied, one.set_attribute, "ttl", "5")
        raises(denied, one.set_attribute, "note", "x")
        raises(denied, one.add_file, "file://localhost/x")
        raises(denied, one.remove)
        raises(denied, one.permissions_allow, "daemon", permissions.WRITE)
        raises(denied, top.open, name, Flags.Lock)
        raises(denied, top.move, name, "moved")
    # To read does not mean to write into the directory.
    raises(denied, top.open, "new.cpr", Flags.Create)
    raises(denied, top.make_dir, "new")
    raises(denied, top.create_child, "read")
    raises(denied, top.open_dir, "private")
    raises(denied, top.list, "private/*")
    written = top.open("written", Flags.Lock)
    written.set_attribute("note", "by daemon")
    written.add_file("file://localhost/more")
    raises(denied, written.permissions_allow, "daemon", permissions.OWNER)
    written.close()
    own = top.open("own", Flags.None_)
    own.permissions_allow("*", permissions.QUERY)
    own.remove()
    assert not top.exists("own")
    # Jobs of others are not there, whatever somebody knows of them.
    assert saga.cpr_job_service().list() == []
    raises(saga.DoesNotExist, saga.cpr_job_service().get_job, f"[{os.environ['GRIDCPR_GRID']}]-[1]")


def context(kind, **attributes):
    made = saga.Context(kind)
    for key, value in attributes.items():
        made.set_attribute(key, f"{os.environ['ISSUED']}/{value}" if key != "UserPass" else value)
    return made


def session(*contexts):
    made = saga.Session(default=False)
    for one in contexts:
        made.add_context(one)
    return made


def certificate(name, authority="ca.pem"):
    return session(context("x509", CertRepository=authority, UserCert=f"{name}.pem", UserKey=f"{name}.key"))


def credentials():
    service = os.environ["SERVICE"]
    with open(f"{os.environ['ISSUED']}/nobody.token") as file:
        token = file.read().strip()
    nobody, daemon = certificate("nobody"), certificate("daemon")
    by_token = session(context("token", CertRepository="ca.pem", UserPass=token))
    jd = saga.cpr_job_description()
    jd.set_attribute("Executable", "/bin/sleep")
    jd.set_vector_attribute("Arguments", ["100"])
    # One sample, with each kind of credentials.
    mine = []
    for one in (nobody, by_token):
        job = saga.cpr_job_service(service, one).create_job(jd)
        job.run()
        url = job.checkpoint()
        mine.append(job.get_attribute("JobID"))
        assert "/nobody/" in str(url) and job.list_checkpoints() == [url]
        assert saga.cpr_entry(url, Flags.None_, one).get_owner() == "nobody"
        theirs = url
    # Objects of another session are somebody else's.
    other = saga.cpr_job_service(service, daemon)
    assert other.list() == [] and set(mine) <= set(saga.cpr_job_service(service, nobody).list())
    raises(saga.PermissionDenied, saga.cpr_entry, theirs, Flags.None_, daemon)
    for one in mine:
        saga.cpr_job_service(service, by_token).get_job(one).cancel()
    nobodys = daemon.list_contexts()[0].get_attribute("UserCert")
    assert nobodys.endswith("daemon.pem") and nobody.list_contexts()[0].get_attribute("UserCert") != nobodys
    # Known, and nobody here that a job could run as.
    unmapped = saga.cpr_job_service(service, certificate("stranger-without-account"))
    raises(saga.AuthorizationFailed, unmapped.create_job(jd).run, about="account")
    # Not known at all.
    for wrong in (certificate("strange"), session(context("token", CertRepository="ca.pem", UserPass="x" * 32)),
                  session(context("x509", CertRepository="ca.pem"))):
        raises(saga.AuthenticationFailed, saga.cpr_job_service, service, wrong)


if __name__ == "__main__":
    {"owner": owner, "other": other, "credentials": credentials}[sys.argv[1]]()
    print("all of", sys.argv[1])
