//! Policies for the contents of files, and programs and libraries that are saved in the image.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{As, Cpr, PATIENCE, finish, skip, wait_until};

/// The restart was refused because a file is not as it was.
const INCOMPATIBLE: i32 = 78;
const WRONG_USAGE: i32 = 64;

/// Opens the files named (for reading only where `:r` follows the name) at offset 4, waits, and reports what it finds.
const HOLDER: &str = r#"
import json, os, sys, time
go, report = sys.argv[1], sys.argv[2]
held = {}
for name in sys.argv[3:]:
    path, _, mode = name.partition(":")
    held[path] = os.open(path, os.O_RDONLY if mode == "r" else os.O_RDWR)
    os.lseek(held[path], 4, os.SEEK_SET)
print("READY", flush=True)
while not os.path.exists(go):
    time.sleep(0.01)
found = {}
for path, fd in held.items():
    found[path] = {
        "position": os.lseek(fd, 0, os.SEEK_CUR),
        "held": os.pread(fd, 1000, 0).decode(),
        "named": open(path).read() if os.path.exists(path) else None,
    }
with open(report + ".new", "w") as f:
    json.dump(found, f)
os.rename(report + ".new", report)
"#;

struct Holder<'a> {
    cpr: &'a Cpr,
    go: PathBuf,
    report: PathBuf,
}

impl<'a> Holder<'a> {
    /// Runs the program on `files`, all of which have ten bytes.
    fn start(cpr: &'a Cpr, options: &[&str], files: &[&str]) -> Holder<'a> {
        Holder::start_in(cpr, &[], options, files)
    }

    /// The same by a command that runs what follows it.
    fn start_in(cpr: &'a Cpr, around: &[&str], options: &[&str], files: &[&str]) -> Holder<'a> {
        let script = cpr.work.join("holder.py");
        fs::write(&script, HOLDER).expect("the test's directory can be written");
        let holder = Holder {
            cpr,
            go: cpr.work.join("go"),
            report: cpr.work.join("report"),
        };
        let mut command: Vec<String> = around.iter().map(|word| (*word).to_owned()).collect();
        command.push("python3".to_owned());
        for path in [&script, &holder.go, &holder.report] {
            command.push(path.display().to_string());
        }
        command.extend(files.iter().map(|file| (*file).to_owned()));
        cpr.run_detached("held", options, &command);
        wait_until(PATIENCE, "the files are open", || cpr.logs("held") == b"READY\n");
        holder
    }

    fn report(&self) -> Value {
        fs::write(&self.go, "").expect("the test's directory can be written");
        assert_eq!(
            self.cpr.wait("held"),
            0,
            "{}",
            String::from_utf8_lossy(&self.cpr.logs("held"))
        );
        serde_json::from_slice(&fs::read(&self.report).expect("there is a report")).expect("the report is JSON")
    }
}

fn put(cpr: &Cpr, name: &str, text: &str) {
    let path = cpr.work.join(name);
    fs::write(&path, text).expect("the test's directory can be written");
    cpr.give(&path);
}

fn append(cpr: &Cpr, name: &str, text: &str) {
    let file = OpenOptions::new().append(true).open(cpr.work.join(name));
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("the file can be appended to");
}

fn read(cpr: &Cpr, name: &str) -> String {
    fs::read_to_string(cpr.work.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Names in the working directory that a restart has left.
fn leftovers(cpr: &Cpr) -> Vec<String> {
    let names = fs::read_dir(&cpr.work)
        .expect("the test's directory can be read")
        .flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".cpr"))
        .collect()
}

const TEN: &str = "0123456789";

/// One checkpoint, one policy for each file, each of them changed afterwards.
fn each_policy(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let open = [
        "same",
        "grown",
        "shorter",
        "extended",
        "cut",
        "kept",
        "log",
        "restored",
        "anonymous",
        "input:r",
        "cutinput:r",
    ];
    for name in open {
        put(&cpr, name.trim_end_matches(":r"), TEN);
    }
    put(&cpr, "closed", TEN);
    put(&cpr, "closed-cut", TEN);
    put(&cpr, "many-1", TEN);
    put(&cpr, "many-2", TEN);
    let holder = Holder::start(&cpr, &[], &open);
    let rules = [
        "**=nocheck",
        "same=check",
        "grown=check,truncate",
        "extended=truncate",
        "cut=truncate",
        "log=append",
        "restored=backup-restore",
        "anonymous=backup-anonymous",
        "closed=backup-restore",
        "closed-cut=nocheck,truncate",
        "many-[0-9]=backup-restore",
        "input=nottruncate",
        "cutinput=truncate",
    ];
    let mut options = vec!["--stop"];
    options.extend(rules.iter().flat_map(|rule| ["--file", rule]));
    let image = cpr.checkpoint("held", &options)["image"]
        .as_str()
        .expect("there is an image")
        .to_owned();
    let listing = cpr.cpr(["inspect", "--json", &image]).good().json();
    let policies = listing["manifest"]["file_policies"]
        .as_array()
        .expect("policies are listed")
        .clone();
    let of = |name: &str| {
        let path = cpr.work.join(name).display().to_string();
        policies
            .iter()
            .find(|p| p["path"] == path.as_str())
            .unwrap_or_else(|| panic!("{name}: {policies:#?}"))
    };
    assert_eq!(of("same")["content"], "check");
    assert_eq!(of("same")["hash"].as_str().map(str::len), Some(64));
    assert_eq!(of("shorter")["content"], "nocheck");
    assert_eq!(of("cut")["truncate"], true);
    assert_eq!(of("closed")["content"], "backup-restore");
    assert_eq!(of("many-2")["content"], "backup-restore");
    let text = cpr.cpr(["inspect", &image]).good().text();
    assert!(text.contains("closed (10 B): backup-restore"), "{text}");

    append(&cpr, "grown", "ab");
    put(&cpr, "shorter", "xy");
    put(&cpr, "extended", "xyz");
    append(&cpr, "cut", "ab");
    append(&cpr, "kept", "ab");
    append(&cpr, "log", "others\n");
    put(&cpr, "restored", "overwritten");
    fs::remove_file(cpr.work.join("anonymous")).expect("the file can be removed");
    put(&cpr, "anonymous", "another");
    append(&cpr, "input", "ab");
    append(&cpr, "cutinput", "ab");
    fs::remove_file(cpr.work.join("closed")).expect("the file can be removed");
    append(&cpr, "closed-cut", "ab");
    put(&cpr, "many-1", "changed");
    fs::remove_file(cpr.work.join("many-2")).expect("the file can be removed");
    cpr.restart("held");
    for (name, contents) in [("closed", TEN), ("closed-cut", TEN), ("many-1", TEN), ("many-2", TEN)] {
        assert_eq!(read(&cpr, name), contents, "{name}");
    }
    assert!(leftovers(&cpr).is_empty(), "{:?}", leftovers(&cpr));
    let report = holder.report();
    for (name, position, held, named) in [
        ("same", 4, TEN, TEN),
        ("grown", 4, TEN, TEN),
        ("shorter", 4, "xy", "xy"),
        ("extended", 4, "xyz\0\0\0\0\0\0\0", "xyz\0\0\0\0\0\0\0"),
        ("cut", 4, TEN, TEN),
        ("kept", 4, "0123456789ab", "0123456789ab"),
        ("log", 17, "0123456789others\n", "0123456789others\n"),
        ("restored", 4, TEN, TEN),
        ("anonymous", 4, TEN, "another"),
        ("input", 4, "0123456789ab", "0123456789ab"),
        ("cutinput", 4, TEN, TEN),
    ] {
        let found = &report[name];
        assert_eq!(
            (&found["position"], &found["held"], &found["named"]),
            (&Value::from(position), &Value::from(held), &Value::from(named)),
            "{name}"
        );
    }
}

// LBNL-3.6.8, LBNL-3.6.8.3, LBNL-3.6.8.4, LBNL-3.6.8.4.b, LBNL-3.6.8.4.c, LBNL-3.6.8.4.d, LBNL-3.6.8.4.e,
// LBNL-3.6.8.4.f, LBNL-3.9.8.2, LBNL-3.9.8.2.1, LBNL-3.9.8.2.2, LBNL-3.9.8.2.3, LBNL-3.9.8.2.4, LBNL-3.9.8.2.5,
// LBNL-3.9.8.2.6, LBNL-3.9.8.2.7
/// What a sandbox shows of the job's files is treated as theirs; a rule about a file that is there only is refused.
#[test]
fn policies_are_about_what_a_sandbox_shows_of_the_jobs_files() {
    const TEST: &str = "policies_are_about_what_a_sandbox_shows_of_the_jobs_files";
    const UNSUPPORTED: i32 = 69;
    let Some(cpr) = Cpr::new(TEST, As::User) else { return };
    put(&cpr, "data", "0123456789");
    let work = cpr.work.display().to_string();
    let sandbox = [
        "bwrap",
        "--unshare-all",
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--bind",
    ];
    let rest = [
        &work,
        &work,
        "--tmpfs",
        "/mnt",
        "sh",
        "-c",
        "printf 9876543210 > /mnt/f && exec \"$@\"",
        "-",
    ];
    let works = cpr
        .command("bwrap")
        .args(["--unshare-all", "--ro-bind", "/", "/", "true"])
        .output();
    if !works.is_ok_and(|output| output.status.success()) {
        skip!(TEST, "bwrap(1) not found, or it may not make namespaces");
    }
    let data = format!("{work}/data");
    let holder = Holder::start_in(&cpr, &[&sandbox[..], &rest[..]].concat(), &[], &[&data, "/mnt/f"]);
    let refused = cpr.cpr(["checkpoint", "--file", "/mnt/f=backup-restore", "held"]);
    assert_eq!(refused.code, UNSUPPORTED, "{refused:?}");
    assert!(refused.stderr.contains("/mnt/f"), "{refused:?}");
    let rule = format!("{data}=backup-restore");
    cpr.cpr(["checkpoint", "--stop", "--file", &rule, "held"]).good();
    fs::write(&data, "something else").expect("the test's directory can be written");
    cpr.restart("held");
    let found = holder.report();
    for (path, text) in [(data.as_str(), "0123456789"), ("/mnt/f", "9876543210")] {
        assert_eq!(found[path]["held"], text);
        assert_eq!(found[path]["named"], text);
        assert_eq!(found[path]["position"], 4);
    }
}

#[test]
fn each_file_is_treated_by_its_policy_root() {
    each_policy("each_file_is_treated_by_its_policy_root", As::Root);
}

#[test]
fn each_file_is_treated_by_its_policy_user() {
    each_policy("each_file_is_treated_by_its_policy_user", As::User);
}

// LBNL-3.6.8.4.a, LBNL-3.9.8.2.1
#[test]
fn a_changed_file_that_is_checked_keeps_a_job_from_restarting() {
    let Some(cpr) = Cpr::new("a_changed_file_that_is_checked", As::User) else {
        return;
    };
    for name in ["open", "closed", "backup"] {
        put(&cpr, name, TEN);
    }
    let holder = Holder::start(&cpr, &[], &["open", "backup"]);
    let rules = [
        "--file",
        "open=check",
        "--file",
        "closed=check",
        "--file",
        "backup=backup-restore",
        "--stop",
    ];
    let image = cpr.checkpoint("held", &rules)["image"]
        .as_str()
        .expect("there is an image")
        .to_owned();
    put(&cpr, "backup", "overwritten");
    for name in ["open", "closed"] {
        // A byte changed, something appended, something missing.
        for changed in ["012345678_", "0123456789a", "012"] {
            put(&cpr, name, changed);
            let refused = cpr.cpr(["restart", "-d", "held"]);
            assert_eq!(refused.code, INCOMPATIBLE, "{name} {changed}: {}", refused.stderr);
            assert!(refused.stderr.contains(name), "{}", refused.stderr);
            let check = cpr.cpr(["check", "--json", &image]);
            assert_eq!(check.code, INCOMPATIBLE);
            assert!(check.text().contains(name), "{}", check.text());
            assert_eq!(read(&cpr, "backup"), "overwritten", "a refused restart changes nothing");
            assert_eq!(read(&cpr, name), changed);
            assert!(leftovers(&cpr).is_empty(), "{:?}", leftovers(&cpr));
        }
        put(&cpr, name, TEN);
    }
    cpr.cpr(["check", &image]).good();
    cpr.restart("held");
    let report = holder.report();
    assert_eq!(report["backup"]["named"], TEN);
    assert_eq!(report["open"]["position"], 4);
}

/// Counts in a file that it has mapped, as a Java virtual machine does, until it is told to go.
const COUNTER: &str = r#"
import fcntl, mmap, os, sys, time
go, path = sys.argv[1:]
os.makedirs(os.path.dirname(path), 0o755)
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
os.ftruncate(fd, 32768)
counters = mmap.mmap(fd, 32768)
counters[8] = 77
print("READY", flush=True)
while not os.path.exists(go):
    time.sleep(0.01)
counters[9] = 78
named = open(path, "rb").read()
sys.exit(0 if counters[8] == 77 and named[8] == 77 and named[9] == 78 else 1)
"#;

// Whatever has become of them meanwhile: the next machine that starts removes those that do not run.
#[test]
fn counters_of_java_are_memory() {
    let Some(cpr) = Cpr::new("counters_of_java_are_memory", As::User) else {
        return;
    };
    let directory = PathBuf::from(format!("/tmp/hsperfdata_gridcpr-test-{}", std::process::id()));
    let (script, go, file) = (cpr.work.join("counter.py"), cpr.work.join("go"), directory.join("4711"));
    fs::write(&script, COUNTER).expect("the test's directory can be written");
    let command = ["python3".as_ref(), script.as_path(), &go, &file].map(|word| word.display().to_string());
    cpr.run_detached("counter", &[], &command);
    wait_until(PATIENCE, "it counts", || cpr.logs("counter") == b"READY\n");
    let image = cpr.checkpoint("counter", &["--stop"])["image"]
        .as_str()
        .expect("there is an image")
        .to_owned();
    fs::remove_file(&file).expect("the file can be removed");
    cpr.restart("counter");
    assert!(file.exists(), "the file is there again");
    cpr.checkpoint("counter", &["--stop"]);
    fs::remove_dir_all(&directory).expect("the directory can be removed");
    cpr.cpr(["check", &image]).good();
    cpr.restart("counter");
    fs::write(&go, "").expect("the test's directory can be written");
    let ended = cpr.wait("counter");
    fs::remove_dir_all(&directory).expect("the directory can be removed");
    assert_eq!(ended, 0);
}

#[test]
fn a_restart_puts_nothing_in_place_of_a_link_or_directory() {
    let Some(cpr) = Cpr::new("a_restart_puts_nothing_in_place_of_a_link", As::User) else {
        return;
    };
    put(&cpr, "data", TEN);
    put(&cpr, "victim", "mine");
    fs::create_dir(cpr.work.join("sub")).expect("a directory can be made");
    put(&cpr, "sub/data", TEN);
    cpr.give(&cpr.work.join("sub"));
    let holder = Holder::start(&cpr, &[], &["data"]);
    let rules = [
        "--file",
        "data=backup-restore",
        "--file",
        "sub/*=backup-restore",
        "--stop",
    ];
    cpr.checkpoint("held", &rules);
    let data = cpr.work.join("data");
    fs::remove_file(&data).expect("the file can be removed");
    std::os::unix::fs::symlink(cpr.work.join("victim"), &data).expect("a link can be made");
    assert_eq!(cpr.cpr(["restart", "-d", "held"]).code, INCOMPATIBLE);
    fs::remove_file(&data).expect("the link can be removed");
    // A link in the way to a file.
    fs::rename(cpr.work.join("sub"), cpr.work.join("other")).expect("a directory can be renamed");
    std::os::unix::fs::symlink(cpr.work.join("other"), cpr.work.join("sub")).expect("a link can be made");
    put(&cpr, "other/data", "changed");
    assert_ne!(cpr.cpr(["restart", "-d", "held"]).code, 0);
    assert_eq!(read(&cpr, "other/data"), "changed");
    fs::remove_file(cpr.work.join("sub")).expect("the link can be removed");
    fs::rename(cpr.work.join("other"), cpr.work.join("sub")).expect("a directory can be renamed");
    cpr.restart("held");
    assert_eq!(
        (read(&cpr, "victim"), read(&cpr, "sub/data")),
        ("mine".to_owned(), TEN.to_owned())
    );
    assert_eq!(holder.report()["data"]["named"], TEN);
}

// LBNL-3.6.8, LBNL-3.6.8.4
#[test]
fn what_a_job_was_started_with_holds_for_all_its_checkpoints() {
    let Some(cpr) = Cpr::new("what_a_job_was_started_with", As::User) else {
        return;
    };
    put(&cpr, "a", TEN);
    put(&cpr, "b", TEN);
    let holder = Holder::start(
        &cpr,
        &["--every", "100ms", "--file", "a=check", "--file", "b=check"],
        &["a", "b"],
    );
    let content = |image: &str, name: &str| {
        let listing = cpr.cpr(["inspect", "--json", image]).good().json();
        let path = cpr.work.join(name).display().to_string();
        let policies = listing["manifest"]["file_policies"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let found = policies.iter().find(|p| p["path"] == path.as_str());
        found.map(|p| p["content"].as_str().unwrap_or_default().to_owned())
    };
    let images = || cpr.cpr(["images", "held", "--quiet"]).good().text();
    wait_until(PATIENCE, "the job is checkpointed by itself", || !images().is_empty());
    let first = images().lines().next().expect("there is an image").to_owned();
    assert_eq!(content(&first, "a").as_deref(), Some("check"));
    let output = cpr.work.join("own.cpr").display().to_string();
    support::wait_until(PATIENCE, "no other checkpoint is under way", || {
        cpr.cpr(["checkpoint", "held", "--file", "b=nocheck", "-o", &output])
            .code
            == 0
    });
    assert_eq!(content(&output, "a").as_deref(), Some("check"));
    assert_eq!(content(&output, "b").as_deref(), Some("nocheck"));
    holder.report();
    for bad in ["a=chek", "a", "a=check,nocheck"] {
        assert_eq!(
            cpr.cpr(["checkpoint", "held", "--file", bad]).code,
            WRONG_USAGE,
            "{bad}"
        );
    }
}

const LIBRARY: &str = "static int count; int NAME(void) { return ++count; }\n";

const PROGRAM: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int linked(void);
int main(int argc, char **argv)
{
    void *plugin = dlopen(argv[2], RTLD_NOW);
    int (*loaded)(void) = (int (*)(void))dlsym(plugin, "loaded");
    if (argc < 3 || !plugin || !loaded)
        return 2;
    linked();
    pid_t child = fork();
    // Each has its own pages of the same libraries.
    int n = child ? 10 : 20;
    for (int i = 0; i < n; i++)
        loaded();
    if (child) {
        puts("READY");
        fflush(stdout);
    }
    while (access(argv[1], F_OK))
        usleep(10000);
    if (linked() != 2 || loaded() != n + 1)
        return 3;
    // The link of the process leads to a program still.
    char magic[5] = {0};
    FILE *self = fopen("/proc/self/exe", "r");
    if (!self || fread(magic, 1, 4, self) != 4 || magic[1] != 'E')
        return 4;
    if (!child)
        return 0;
    int status;
    if (waitpid(child, &status, 0) != child || status)
        return 5;
    if (dlclose(plugin))
        return 6;
    puts("OK");
    return 0;
}
"#;

fn compile(cpr: &Cpr, arguments: &[&str], output: &Path) {
    let mut command = Command::new("cc");
    command.current_dir(&cpr.work).args(arguments).arg("-o").arg(output);
    finish(&cpr.work, command, PATIENCE).good();
    cpr.give(output);
}

fn library(cpr: &Cpr, name: &str, text: &str) {
    put(cpr, "library.c", &LIBRARY.replace("NAME", name).replace("count;", text));
    compile(
        cpr,
        &["-shared", "-fPIC", "library.c"],
        &cpr.work.join(format!("lib{name}.so")),
    );
}

fn libraries(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    library(&cpr, "linked", "count;");
    library(&cpr, "loaded", "count;");
    put(&cpr, "program.c", PROGRAM);
    let program = cpr.work.join("program");
    compile(&cpr, &["-Wl,-rpath,.", "program.c", "./liblinked.so"], &program);
    let go = cpr.work.join("go").display().to_string();
    let plugin = cpr.work.join("libloaded.so").display().to_string();
    cpr.run_detached("lib", &[], &[&program.display().to_string(), &go, &plugin]);
    wait_until(PATIENCE, "the libraries are loaded", || cpr.logs("lib") == b"READY\n");
    let plain = cpr.work.join("plain.cpr").display().to_string();
    cpr.checkpoint("lib", &["-o", &plain]);
    let whole = cpr.checkpoint("lib", &["--stop", "--save-libraries", "--save-executable"]);
    let whole = whole["image"].as_str().expect("there is an image").to_owned();
    let size = |path: &str| fs::metadata(path).expect("the image is there").len();
    assert!(size(&whole) > size(&plain) + 1_000_000, "the C library alone has more");
    // One library is upgraded, another removed, and the program, too.
    let old = fs::metadata(cpr.work.join("liblinked.so"))
        .expect("the library is there")
        .len();
    library(&cpr, "linked", "count; int more[9999] = {1};");
    assert_ne!(
        old,
        fs::metadata(cpr.work.join("liblinked.so"))
            .expect("the library is there")
            .len()
    );
    fs::remove_file(cpr.work.join("libloaded.so")).expect("the library can be removed");
    let refused = cpr.cpr(["restart", "-d", "--name", "plain", &plain]);
    assert_eq!(refused.code, INCOMPATIBLE, "{}", refused.stderr);
    let named = ["liblinked.so", "libloaded.so"]
        .iter()
        .any(|name| refused.stderr.contains(name));
    assert!(named, "{}", refused.stderr);
    fs::remove_file(&program).expect("the program can be removed");
    cpr.restart("lib");
    // And once more from what the restart made.
    cpr.checkpoint("lib", &["--stop"]);
    cpr.restart("lib");
    fs::write(&go, "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("lib"), 0, "{}", String::from_utf8_lossy(&cpr.logs("lib")));
    assert_eq!(cpr.logs("lib"), b"READY\nOK\n");
}

// LBNL-3.5.3, LBNL-3.5.3.1, LBNL-3.6.8.1, LBNL-3.6.8.5, LBNL-3.6.8.5.1, LBNL-3.8.3, LBNL-3.8.3.1, LBNL-3.8.3.2,
// LBNL-3.9.10.1.2, LBNL-3.9.10.5.3A, LBNL-3.9.10.5.3B, XGCP-EVAL-13, XGCP-SEC-3
#[test]
fn saved_libraries_are_not_needed_at_restart_root() {
    libraries("saved_libraries_are_not_needed_at_restart_root", As::Root);
}

#[test]
fn saved_libraries_are_not_needed_at_restart_user() {
    libraries("saved_libraries_are_not_needed_at_restart_user", As::User);
}

#[test]
fn a_job_moves_to_other_paths_with_the_contents_of_its_files() {
    let Some(cpr) = Cpr::new("a_job_moves_to_other_paths", As::User) else {
        return;
    };
    for directory in ["old", "new"] {
        fs::create_dir(cpr.work.join(directory)).expect("a directory can be made");
    }
    put(&cpr, "old/data", TEN);
    for directory in ["old", "new"] {
        cpr.give(&cpr.work.join(directory));
    }
    let holder = Holder::start(&cpr, &[], &["old/data"]);
    let rules = ["--stop", "--file", "old/data=backup-restore"];
    let image = cpr.checkpoint("held", &rules)["image"]
        .as_str()
        .expect("there is an image")
        .to_owned();
    put(&cpr, "old/data", "changed");
    let moved = cpr.work.join("moved.cpr").display().to_string();
    let paths = format!("{0}/old={0}/new", cpr.work.display());
    cpr.cpr(["edit", &image, "-o", &moved, "--replace-path", &paths]).good();
    cpr.cpr(["restart", "-d", "--name", "moved", &moved]).good();
    assert_eq!(read(&cpr, "new/data"), TEN);
    assert_eq!(read(&cpr, "old/data"), "changed");
    fs::write(&holder.go, "").expect("the test's directory can be written");
    assert_eq!(cpr.wait("moved"), 0);
    let report: Value = serde_json::from_str(&read(&cpr, "report")).expect("the report is JSON");
    assert_eq!(report["old/data"]["held"], TEN);
}
