"""The name space: directories, checkpoints, links, files, the tree and its errors, in a grid that runs."""

import hashlib
import os
import time

from check import main, raises, until
from gridcpr import saga
from gridcpr.saga import Flags, permissions

ROOT = saga.cpr_dir("any:///")
HOME = f"names-{os.getpid()}"
WORK = ROOT.make_dir(HOME)


def fresh(name):
    """An empty directory of its own for a test."""
    return WORK.make_dir(name)


def names(directory, pattern="*"):
    return sorted(str(url) for url in directory.list(pattern))


def data(name, content=b"data"):
    path = os.path.abspath(name)
    with open(path, "wb") as file:
        file.write(content)
    return path


def entry(directory, name, flags=Flags.Create):
    return directory.open(name, flags)


# SAGA-URL-1, SAGA-NS-get_url, SAGA-SEM-13, SAGA-NS-close
def test_entries_are_named_by_urls_and_closed():
    top = fresh("urls")
    one = top.open("a/b/c.cpr")
    assert one.get_url().get_scheme() == "gridcpr" and one.get_url().get_host()
    assert str(one.get_url()).endswith(f"/{HOME}/urls/a/b/c.cpr")
    assert str(one.get_cwd()).endswith(f"/{HOME}/urls/a/b") and one.get_name() == "c.cpr"
    index = one.add_file(data("c.0"))
    assert one.get_file(index).get_scheme() == "file"
    one.close()
    one.close()
    for call in (one.get_url, one.get_name, one.list_files, one.get_parent, one.list_attributes):
        raises(saga.IncorrectState, call, about="closed")
    raises(saga.IncorrectState, one.remove)
    assert saga.directory is saga.cpr_dir and saga.checkpoint is saga.cpr_entry
    again = saga.checkpoint(top.get_url().clone().resolve("any:///").get_string() + "/a/b/c.cpr", Flags.None_)
    assert saga.directory(top.get_url()).is_entry("a/b/c.cpr") and again.get_file_num() == 1


# SAGA-CP-FLAG-None, SAGA-CP-FLAG-Create, SAGA-CP-FLAG-Excl, SAGA-CP-FLAG-CreateParents, SAGA-CP-FLAG-Lock
# SAGA-DIR-open, SAGA-NS-flags, SAGA-NS-make_dir
def test_flags_say_how_entries_are_opened():
    top = fresh("flags")
    raises(saga.DoesNotExist, top.open, "a/b/c.cpr", Flags.None_)
    raises(saga.DoesNotExist, top.open, "a/b/c.cpr", Flags.Create)
    raises(saga.DoesNotExist, top.open, "c.cpr", Flags.None_)
    assert not top.exists("a") and not top.exists("c.cpr")
    assert entry(top, "c.cpr").is_entry()
    raises(saga.AlreadyExists, top.open, "c.cpr", Flags.Create | Flags.Excl)
    top.open("new.cpr", Flags.Create | Flags.Excl)
    deep = top.open("a/b/c.cpr", Flags.CreateParents)
    assert deep.is_entry() and top.is_dir("a") and top.is_dir("a/b")
    assert getattr(Flags, "None") == 0 and [
        Flags.Overwrite, Flags.Recursive, Flags.Dereference, Flags.Create, Flags.Excl, Flags.Lock, Flags.CreateParents,
        Flags.Truncate, Flags.Append, Flags.Read, Flags.Write, Flags.ReadWrite, Flags.Binary,
    ] == [2**power for power in range(13)]
    # By default: CreateParents and Lock.
    first = top.open("x/y/z.cpr")
    assert top.is_entry("x/y/z.cpr")
    raises(saga.IncorrectState, top.open, "x/y/z.cpr", about="locked")
    raises(saga.IncorrectState, top.open, "x/y/z.cpr", Flags.Lock, about="locked")
    top.open("x/y/z.cpr", Flags.None_).close()
    first.close()
    top.open("x/y/z.cpr", Flags.Lock).close()
    made = top.make_dir("m")
    assert made.is_dir() and top.open_dir("m").get_name() == "m"
    raises(saga.AlreadyExists, top.make_dir, "m")
    top.make_dir("m", Flags.Overwrite)
    raises(saga.DoesNotExist, top.make_dir, "p/q/r")
    top.make_dir("p/q/r", Flags.CreateParents).open("in.cpr", Flags.Create)
    raises(saga.DoesNotExist, top.open_dir, "none")
    raises(saga.BadParameter, top.open_dir, "c.cpr")
    raises(saga.BadParameter, top.open, "m", Flags.None_)
    table = [
        (lambda f: top.open("c.cpr", f), Flags.Recursive), (lambda f: top.open_dir("m", f), Flags.Truncate),
        (lambda f: top.find("*", [], f), Flags.Lock), (lambda f: top.list("*", f), Flags.Overwrite),
        (lambda f: top.copy("c.cpr", "d.cpr", f), Flags.Lock), (lambda f: top.link("c.cpr", "d.cpr", f), Flags.Excl),
        (lambda f: top.move("c.cpr", "d.cpr", f), Flags.Read), (lambda f: top.remove("c.cpr", f), Flags.Create),
        (lambda f: top.make_dir("n", f), Flags.Dereference), (lambda f: top.is_dir("m", f), Flags.Recursive),
        (lambda f: top.is_entry("m", f), Flags.Lock), (lambda f: deep.create_child(f), Flags.Dereference),
        (lambda f: deep.copy("e", f), Flags.Append), (lambda f: deep.remove(f), Flags.Overwrite),
    ]
    for call, wrong in table:
        raises(saga.BadParameter, call, wrong, about="flag")
        raises(saga.BadParameter, call, 1 << 20, about="flag")
        raises(saga.BadParameter, call, -1)
    assert names(top) == ["a", "c.cpr", "m", "new.cpr", "p", "x"]


# SAGA-CP-3, SAGA-CP-FLAG-Truncate, SAGA-CP-FLAG-Append, SAGA-CP-FLAG-Read, SAGA-CP-FLAG-Write
# SAGA-CP-FLAG-ReadWrite, SAGA-CP-FLAG-Binary
def test_files_are_opened_one_by_one():
    one = entry(fresh("files"), "four.cpr")
    for rank in range(4):
        assert one.add_file(data(f"rank.{rank}", b"HEAD%d" % rank)) == rank
    with one.open_file(2) as file:
        assert file.read(4) == b"HEAD" and file.read() == b"2" and file.get_size() == 5
        raises(saga.PermissionDenied, file.write, b"x")
    with one.open_file(0, Flags.Read) as file:
        raises(saga.PermissionDenied, file.write, b"x")
    with one.open_file(0, Flags.Write) as file:
        raises(saga.PermissionDenied, file.read)
        file.write(b"tail")
    assert one.open_file(0).read() == b"tail0"
    with one.open_file(0, Flags.Write | Flags.Append) as file:
        assert file.write(b"+") == 1
    assert one.open_file(0).read() == b"tail0+"
    with one.open_file(1, Flags.Write | Flags.Truncate) as file:
        assert file.get_size() == 0
    assert one.open_file(1).read() == b""
    every = bytes(range(256))
    for flags in (Flags.ReadWrite, Flags.ReadWrite | Flags.Binary):
        with one.open_file(3, flags | Flags.Truncate) as file:
            file.write(every)
            file.seek(0)
            assert file.read() == every
            assert file.seek(-1, "End") == 255 and file.read() == b"\xff"
    raises(saga.DoesNotExist, one.open_file, 9)
    raises(saga.BadParameter, one.open_file, 0, Flags.Read | Flags.Write)
    raises(saga.BadParameter, one.open_file, 0, Flags.Recursive)
    os.unlink("rank.0")
    raises(saga.DoesNotExist, one.open_file, 0)
    file.close()
    raises(saga.IncorrectState, file.read)


# SAGA-CP-2, SAGA-CP-add_file, SAGA-CP-remove_file, SAGA-CP-update_file, SAGA-CP-get_file, SAGA-CP-list_files
# SAGA-CP-get_file_num, SAGA-CP-attr-nfiles, SAGA-DIR-add_file, SAGA-DIR-remove_file, SAGA-DIR-update_file
# SAGA-DIR-get_file, SAGA-DIR-list_files, SAGA-DIR-get_file_num
def test_a_checkpoint_has_any_number_of_files():
    top = fresh("number")
    for count in (0, 1, 100):
        made = entry(top, f"{count}.cpr")
        container = [made.add_file(f"file://localhost/{number}") for number in range(min(count, 3))]
        for number in range(len(container), count):
            made.add_file(f"file://localhost/{number}")
        opened = top.open(f"{count}.cpr", Flags.None_)
        assert opened.get_file_num() == count == int(opened.get_attribute("nfiles"))
        assert [str(url) for url in opened.list_files()] == [f"file://localhost/{number}" for number in range(count)]
    for by_directory in (True, False):
        name = f"by-{by_directory}.cpr"
        one = entry(top, name)

        def do(method, *arguments):
            return getattr(top, method)(name, *arguments) if by_directory else getattr(one, method)(*arguments)

        indices = [do("add_file", f"file://localhost/{letter}") for letter in "abc"]
        assert len(set(indices)) == 3
        removed = do("remove_file", indices[1])
        assert str(removed) == "file://localhost/b"
        left = [str(do("get_file", index)) for index in (indices[0], indices[2])]
        assert left == ["file://localhost/a", "file://localhost/c"]
        do("update_file", indices[0], "s3://bucket/z")
        assert str(do("get_file", indices[0])) == "s3://bucket/z"
        assert [str(url) for url in do("list_files")] == ["s3://bucket/z", "file://localhost/c"]
        assert do("get_file_num") == 2
        for method, more in (("get_file", ()), ("remove_file", ()), ("update_file", ("file://localhost/q",))):
            raises(saga.DoesNotExist, do, method, indices[1], *more)
        assert do("add_file", "file://localhost/d") not in indices
        raises(saga.BadParameter, do, "get_file", "first")
    # Two writers at once.
    both = top.open("by-True.cpr", Flags.None_), top.open("by-True.cpr", Flags.None_)
    tasks = [one.add_file(f"file://localhost/w{number}", ttype=saga.ASYNC) for number, one in enumerate(both * 5)]
    assert len({task.get_result() for task in tasks}) == 10
    assert raises(saga.DoesNotExist, both[0].get_file, 99).get_object() is both[0]


# SAGA-DIR-set_parent, SAGA-DIR-get_parent, SAGA-DIR-create_child, SAGA-CP-set_parent, SAGA-CP-get_parent
# SAGA-CP-create_child, SAGA-CP-attr-parent, SAGA-CP-attr-childs, SAGA-SEM-2, SAGA-SEM-4, SAGA-SEM-5
# SAGA-ERR-BadParameter
def test_checkpoints_form_a_tree():
    top = fresh("tree")
    chain = [entry(top, f"c.{number}.cpr") for number in range(5)]
    for number in range(1, 5):
        if number % 2:
            top.set_parent(f"c.{number}.cpr", f"c.{number - 1}.cpr")
        else:
            chain[number].set_parent(f"c.{number - 1}.cpr")
    for ask in (lambda g: chain[4].get_parent(g), lambda g: top.get_parent("c.4.cpr", g)):
        assert str(ask(1)).endswith("c.3.cpr") and str(ask(3)).endswith("c.1.cpr")
        raises(saga.DoesNotExist, ask, 9)
        raises(saga.BadParameter, ask, -3)
        raises(saga.BadParameter, ask, 0)
    for number, one in enumerate(chain):
        parent = one.get_attribute("parent")
        assert parent == ("" if number == 0 else str(chain[number - 1].get_url())), parent
        children = one.get_vector_attribute("childs")
        assert children == ([] if number == 4 else [str(chain[number + 1].get_url())])
    first, second = chain[4].create_child(), top.create_child("c.4.cpr")
    assert first.get_name() != second.get_name() and first.get_parent() == second.get_parent() == chain[4].get_url()
    assert chain[4].get_vector_attribute("childs") == [str(first.get_url()), str(second.get_url())]
    # At most one parent, and no cycles.
    top.set_parent(first.get_name(), "c.0.cpr")
    assert chain[4].get_children() == [second.get_url()] and first.get_parent() == chain[0].get_url()
    raises(saga.BadParameter, chain[0].set_parent, "c.4.cpr")
    raises(saga.BadParameter, chain[0].set_parent, "c.0.cpr")
    raises(saga.BadParameter, top.set_child, "c.4.cpr", "c.0.cpr")
    # Set, removed, and set again, by each of the four calls.
    for by in (chain[0], None):
        one = "c.0.cpr"
        other = first.get_name()
        (by.remove_child(other) if by else top.remove_child(one, other))
        raises(saga.DoesNotExist, first.get_parent)
        assert first.get_attribute("parent") == "" and first.get_url() not in chain[0].get_children()
        (by.set_child(other) if by else top.set_child(one, other))
        assert first.get_parent() == chain[0].get_url() and first.get_url() in chain[0].get_children()
        (first.remove_parent() if by else top.remove_parent(other))
        raises(saga.DoesNotExist, top.get_parent, other)
        (first.set_parent(one) if by else top.set_parent(other, one))
        assert first.get_parent() == chain[0].get_url()
    raises(saga.DoesNotExist, chain[0].remove_child, "c.4.cpr")
    raises(saga.DoesNotExist, chain[0].set_parent, "none.cpr")
    # What goes is replaced by what was before it.
    chain[2].remove()
    assert chain[3].get_parent() == chain[1].get_url()


# SAGA-CP-attr-time, SAGA-CP-attr-ttl, SAGA-CP-attr-mode, SAGA-CP-1
def test_attributes_of_checkpoints():
    before = time.time()
    one = entry(fresh("attributes"), "a.cpr")
    assert before - 1 <= float(one.get_attribute("time")) <= time.time() + 1
    assert one.get_attribute("ttl") == "2500000" and one.get_attribute("mode") == "full"
    for mode in ("inc 1", "inc 2", "full"):
        one.set_attribute("mode", mode)
        assert one.get_attribute("mode") == mode
    raises(saga.BadParameter, one.set_attribute, "ttl", "soon", about="ttl")
    raises(saga.BadParameter, one.set_attribute, "mode", "half", about="mode")
    for key in ("time", "nfiles", "parent"):
        raises(saga.PermissionDenied, one.set_attribute, key, "1", about=key)
        assert one.attribute_is_readonly(key)
    raises(saga.PermissionDenied, one.set_vector_attribute, "childs", [])
    raises(saga.IncorrectState, one.get_attribute, "childs")
    assert one.list_attributes()[:6] == ["time", "nfiles", "ttl", "mode", "parent", "childs"]
    one.set_attribute("step", 17)
    one.set_vector_attribute("grids", ["a", "b"])
    other = saga.cpr_entry(one.get_url(), Flags.None_)
    assert other.get_attribute("step") == "17" and other.get_vector_attribute("grids") == ["a", "b"]
    assert sorted(other.find_attributes("step=1*", "grids=b")) == ["grids", "step"]
    assert other.attribute_is_vector("grids") and other.attribute_is_removable("step")
    assert not other.attribute_is_removable("ttl")
    other.remove_attribute("step")
    raises(saga.DoesNotExist, one.get_attribute, "step")
    one.set_attribute("ttl", "1")
    until("its time is over", lambda: not WORK.exists("attributes/a.cpr"))


# SAGA-JD-CPRTimeToLive-3, SAGA-SEM-9, SAGA-ERR-IncorrectState
def test_what_increments_need_stays():
    top = fresh("increments")
    full = entry(top, "f.0.cpr")
    increments = [full.create_child()]
    increments.append(increments[0].create_child())
    for one in increments:
        one.set_attribute("mode", "inc 2")
    error = raises(saga.IncorrectState, full.remove, about="changed since")
    assert error.get_object() is full
    full.set_attribute("ttl", "1")
    time.sleep(1.5)
    other = entry(top, "other.cpr")
    other.set_attribute("ttl", "0")
    until("those that can go have gone", lambda: not top.exists("other.cpr"))
    assert top.exists("f.0.cpr")
    increments[1].remove()
    increments[0].remove()
    until("nothing needs it", lambda: not top.exists("f.0.cpr"))
    both = entry(top, "g.0.cpr")
    both.create_child().set_attribute("mode", "inc 1")
    top.remove("", Flags.Recursive)
    assert not WORK.exists("increments")


# SAGA-NS-copy, SAGA-NS-move, SAGA-NS-remove, SAGA-CP-FLAG-Overwrite, SAGA-CP-FLAG-Recursive
def test_entries_are_copied_moved_and_removed_with_their_files():
    top = fresh("copies")
    one = entry(top, "a.cpr")
    path = data("copied", b"content")
    one.add_file(path)
    one.set_attribute("step", "3")
    one.copy("b.cpr")
    other = top.open("b.cpr", Flags.None_)
    assert other.get_attribute("step") == "3" and other.list_files() != one.list_files()
    with one.open_file(0, Flags.Write | Flags.Truncate) as file:
        file.write(b"changed")
    raises(saga.AlreadyExists, one.copy, "b.cpr")
    assert other.open_file(0).read() == b"content"
    one.copy("b.cpr", Flags.Overwrite)
    assert top.open("b.cpr", Flags.None_).open_file(0).read() == b"changed"
    child = one.create_child()
    top.make_dir("sub")
    one.move("sub")
    assert str(one.get_url()).endswith("/sub/a.cpr") and child.get_parent() == one.get_url()
    top.move("sub", "moved")
    assert child.get_attribute("parent").endswith("/moved/a.cpr") and not top.exists("sub")
    raises(saga.BadParameter, top.move, "moved", "moved/x")
    raises(saga.AlreadyExists, top.move, "b.cpr", child.get_name())
    top.move("b.cpr", "c.cpr")
    raises(saga.BadParameter, top.copy, "moved", "tree")
    top.copy("moved", "tree", Flags.Recursive)
    assert top.open("tree/a.cpr", Flags.None_).open_file(0).read() == b"changed"
    raises(saga.BadParameter, top.remove, "tree")
    assert top.exists("tree/a.cpr")
    copy = top.open("tree/a.cpr", Flags.None_).list_files()[0].get_path()
    top.remove("tree", Flags.Recursive)
    assert not top.exists("tree") and not os.path.exists(copy) and os.path.exists(path)
    there = top.open("moved/a.cpr", Flags.None_)
    there.remove()
    assert not os.path.exists(path)
    raises(saga.IncorrectState, there.get_url)
    raises(saga.DoesNotExist, child.get_parent)


# SAGA-NS-is, SAGA-NS-read_link, SAGA-NS-link, SAGA-CP-FLAG-Dereference
def test_links():
    top = fresh("links")
    one = entry(top, "a.cpr")
    one.link("latest")
    top.link("latest", "second")
    assert top.is_link("latest") and not top.is_entry("latest") and not top.is_dir("latest")
    assert top.is_entry("latest", Flags.Dereference)
    assert top.is_entry("a.cpr") and not top.is_link("a.cpr") and one.is_entry() and not one.is_link()
    assert top.is_dir() and not top.is_dir("a.cpr") and not one.is_dir()
    assert top.read_link("latest") == one.get_url()
    assert str(top.read_link("second")).endswith("/latest")
    raises(saga.IncorrectState, top.read_link, "a.cpr")
    raises(saga.IncorrectState, one.read_link)
    assert top.open("second", Flags.None_).get_url() == one.get_url()
    top.remove("second")
    assert top.exists("latest") and top.exists("a.cpr")
    top.remove("latest", Flags.Dereference)
    assert not top.exists("a.cpr") and top.is_link("latest")
    raises(saga.DoesNotExist, top.open, "latest", Flags.None_)
    top.link("latest", "loop")
    top.link("loop", "latest", Flags.Overwrite)
    raises(saga.DoesNotExist, top.open, "loop", Flags.None_)


# SAGA-NS-change_dir, SAGA-NS-list, SAGA-NS-exists, SAGA-NS-entries, SAGA-NS-wildcards, SAGA-DIR-1
def test_directories_are_listed_and_walked():
    top = fresh("walk")
    for job in range(3):
        for number in (1, 2, 11):
            entry(top, f"job{job}.{number}.cpr")
    entry(top, "odd%20name")
    top.make_dir("d")
    assert len(names(top, "*.cpr")) == 9 and len(names(top)) == 11
    assert names(top, "job?.[0-9].cpr") == [f"job{job}.{number}.cpr" for job in range(3) for number in (1, 2)]
    assert names(top, "nothing*") == []
    assert top.exists("d") and top.exists("job1.1.cpr") and not top.exists("none") and not top.exists("none/at/all")
    assert top.get_num_entries() == 11
    assert sorted(str(top.get_entry(number)) for number in range(11)) == names(top)
    raises(saga.DoesNotExist, top.get_entry, 11)
    raises(saga.BadParameter, top.get_entry, -1)
    top.copy("job1.*.cpr", "d")
    assert names(top, "d/*") == [f"d/job1.{number}.cpr" for number in (1, 11, 2)]
    raises(saga.BadParameter, top.copy, "job2.*.cpr", "job1.1.cpr")
    raises(saga.BadParameter, top.copy, "job2.*.cpr", "none")
    raises(saga.DoesNotExist, top.copy, "nothing*", "d")
    top.move("job2.*.cpr", "d")
    top.link("job0.*.cpr", "d")
    assert len(names(top, "job2*")) == 0 and top.is_link("d/job0.1.cpr")
    top.remove("job1.*.cpr")
    assert len(names(top, "job1*")) == 0
    top.change_dir("d")
    assert top.get_name() == "d" and len(names(top)) == 9
    top.change_dir("..")
    raises(saga.DoesNotExist, top.change_dir, "none")
    assert top.get_name() == "walk"
    top.set_attribute("note", "mine")
    assert top.get_attribute("note") == "mine" and top.list_attributes() == ["note"]


# SAGA-DIR-find-1, SAGA-DIR-find-2, SAGA-DIR-find-3
def test_checkpoints_are_found_by_name_and_metadata():
    top = fresh("find")
    top.make_dir("x/y", Flags.CreateParents)
    for place in ("", "x/", "x/y/"):
        for number in (6, 7):
            one = entry(top, f"{place}job.{number}.cpr")
            for file in range(number - 6):
                one.add_file(f"file://localhost/{file}")
            if place == "x/":
                one.set_attribute("mode", "inc 1")
    def found(*arguments):
        return sorted(str(url)[len(str(top.get_url())) + 1:] for url in top.find(*arguments))
    assert found("*.7.cpr") == ["job.7.cpr"]
    assert found("*.7.cpr", [], Flags.Recursive) == ["job.7.cpr", "x/job.7.cpr", "x/y/job.7.cpr"]
    assert found("*", ["mode=full"], Flags.Recursive) == ["job.6.cpr", "job.7.cpr", "x/y/job.6.cpr", "x/y/job.7.cpr"]
    assert found("*", ["mode=full", "nfiles=1"], Flags.Recursive) == ["job.7.cpr", "x/y/job.7.cpr"]
    assert found("*", ["mode=inc*", "nfiles=0"], Flags.Recursive) == ["x/job.6.cpr"]
    assert found("*") == ["job.6.cpr", "job.7.cpr"] and found("*", ["mode=none"]) == []
    raises(saga.BadParameter, top.find, "*", [], Flags.Lock)


# SAGA-DIR-2, SAGA-DIR-stage, SAGA-CP-stage, SAGA-URL-2, SAGA-CAP-B.2
def test_files_are_staged():
    top = fresh("stage")
    one = entry(top, "a.cpr")
    contents = [os.urandom(1000), os.urandom(2000)]
    for number, content in enumerate(contents):
        one.add_file(data(f"staged.{number}", content))
    url = one.get_url()
    one.stage(os.path.abspath("elsewhere"), 1)
    assert os.listdir("elsewhere") == ["staged.1"]
    top.stage("a.cpr", f"file://localhost{os.path.abspath('elsewhere')}")
    for number, content in enumerate(contents):
        with open(f"elsewhere/staged.{number}", "rb") as file:
            assert hashlib.sha256(file.read()).digest() == hashlib.sha256(content).digest()
    assert all("/elsewhere/" in str(file) for file in one.list_files())
    top.stage("a.cpr", os.path.abspath("single"), 1)
    assert os.listdir("single") == ["staged.1"]
    top.stage("a.cpr", os.path.abspath("elsewhere"))
    raises(saga.DoesNotExist, top.stage, "a.cpr", os.path.abspath("single"), 7)
    os.unlink("staged.0")
    os.unlink("staged.1")
    again = saga.cpr_entry(url, Flags.None_)
    assert again.open_file(0).read() == contents[0] and again.open_file(1).read() == contents[1]
    raises(saga.IncorrectURL, one.stage, "ftp://host/x")
    raises(saga.DoesNotExist, one.stage, os.path.abspath("elsewhere"), 7)


# SAGA-ERR-2, SAGA-ERR-IncorrectURL, SAGA-ERR-AlreadyExists, SAGA-ERR-DoesNotExist
def test_the_most_specific_error_is_raised():
    top = fresh("errors")
    for bad in ("foo://x/y", "gridcpr://h^/x", "any:///%zz", "file:///tmp/x", "gridcpr://me@localhost/x"):
        for call in (top.open, top.open_dir, top.exists, top.change_dir, top.is_dir, top.read_link, top.make_dir,
                     top.get_parent, saga.cpr_dir, lambda url: top.copy(url, "x"), lambda url: top.move("y", url)):
            raises(saga.IncorrectURL, call, bad)
    top.make_dir("d")
    assert raises(saga.AlreadyExists, top.make_dir, "d").get_object() is top
    assert raises(saga.DoesNotExist, top.read_link, "none").get_object() is top
    raises(saga.IncorrectURL, saga.cpr_entry, "relative.cpr")
    assert saga.Url(str(top.get_url())) == top.get_url()


# SAGA-PERM-3, SAGA-PERM-2
def test_owners_and_groups():
    one = entry(fresh("owners"), "a.cpr")
    import grp
    import pwd
    assert one.get_owner() == pwd.getpwuid(os.geteuid()).pw_name
    assert one.get_group() == grp.getgrgid(os.getegid()).gr_name
    raises(saga.BadParameter, one.permissions_allow, "*", permissions.OWNER)
    raises(saga.BadParameter, one.permissions_allow, "nobody-knows-him", permissions.READ)
    raises(saga.BadParameter, one.permissions_check, "", permissions.READ)
    raises(saga.BadParameter, one.permissions_deny, "daemon", 64)
    assert one.permissions_check(one.get_owner(), permissions.ALL)
    one.permissions_allow("*", permissions.QUERY | permissions.READ)
    assert one.permissions_check("daemon", permissions.READ) and not one.permissions_check("daemon", permissions.WRITE)
    one.permissions_allow("group-daemon", permissions.WRITE)
    assert one.permissions_check("group-daemon", permissions.WRITE)
    one.permissions_deny("group-daemon", permissions.WRITE)
    assert not one.permissions_check("group-daemon", permissions.WRITE)
    one.permissions_deny("*", permissions.READ)
    assert not one.permissions_check("daemon", permissions.READ) and one.permissions_check("daemon", permissions.QUERY)


if __name__ == "__main__":
    main(globals())
