//! `cpr verify --restore`: an image is restarted in a sandbox, and nothing outside changes.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::victim::{Victim, compile};
use support::{As, Cpr, PATIENCE, finish, knows_file_system, skip, wait_until};

const DAMAGED: i32 = 65;
const INCOMPATIBLE: i32 = 78;

/// Writes to everything it has, as fast as it can, and makes and removes files: whatever gets through shows.
const WRITER: &str = r#"
import fcntl, mmap, os, socket, sys, tempfile
work = sys.argv[1]
os.chdir(work)
out = open("out", "a+b", buffering=0)
fcntl.flock(out, fcntl.LOCK_EX)
mapped_file = open("mapped", "r+b")
mapped = mmap.mmap(mapped_file.fileno(), 4096)
gone = tempfile.TemporaryFile(dir=work)
os.mkfifo("fifo")
fifo = os.open("fifo", os.O_RDWR | os.O_NONBLOCK)
listener = socket.socket(socket.AF_UNIX)
listener.bind("socket")
listener.listen(1)
server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(1)
child = os.fork()
count = 0
while True:
    count += 1
    out.write(b"%d %d\n" % (os.getpid(), count))
    mapped[0:8] = b"%08d" % (count % 10000000)
    gone.write(b"x")
    gone.flush()
    os.write(fifo, b"y")
    os.read(fifo, 1)
    if count == 3 and child:
        print("READY", flush=True)
    if os.path.exists("stop"):
        break
    if sys.argv[2] == "calm":
        continue
    try:
        with open("made-%d" % (count % 100), "w") as made:
            made.write("z")
        os.unlink("made-%d" % (count % 100))
    except OSError:
        pass
"#;

/// Names, lengths, times and contents of everything in a directory.
fn snapshot(directory: &Path) -> Vec<(String, u64, std::time::SystemTime, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .expect("the directory can be read")
        .flatten()
        .map(|entry| {
            let metadata = entry.metadata().expect("the entry can be looked at");
            let contents = if metadata.is_file() {
                fs::read(entry.path()).expect("the file can be read")
            } else {
                Vec::new()
            };
            let modified = metadata.modified().expect("there is a time");
            (
                entry.file_name().to_string_lossy().into_owned(),
                metadata.len(),
                modified,
                contents,
            )
        })
        .collect();
    all.sort();
    all
}

/// Starts the writer; a calm one makes no files.
fn start(cpr: &Cpr, mood: &str) -> PathBuf {
    let data = cpr.work.join("data");
    fs::create_dir(&data).expect("a directory can be made");
    fs::write(data.join("mapped"), [b'-'; 4096]).expect("a file can be made");
    fs::write(cpr.work.join("writer.py"), WRITER).expect("a file can be made");
    cpr.give(&data);
    let script = cpr.work.join("writer.py").display().to_string();
    cpr.run_detached("writer", &[], &["python3", &script, &data.display().to_string(), mood]);
    wait_until(PATIENCE, "the program writes", || cpr.logs("writer") == b"READY\n");
    data
}

/// State of the newest image of a job, as `cpr images` tells it.
fn state(cpr: &Cpr, job: &str) -> String {
    let images = cpr.cpr(["images", "--json", job]).good().json();
    let newest = images["images"].as_array().and_then(|all| all.last()).cloned();
    newest.map_or_else(String::new, |image| {
        image["state"].as_str().unwrap_or("none").to_owned()
    })
}

fn proves(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let data = start(&cpr, "busy");
    let image = cpr.checkpoint("writer", &["--stop"])["image"]
        .as_str()
        .expect("there is an image")
        .to_owned();
    assert_eq!(state(&cpr, "writer"), "written");
    cpr.cpr(["verify", "writer"]).good();
    assert_eq!(state(&cpr, "writer"), "verified");
    let before = snapshot(&data);
    let report = cpr.cpr(["verify", "--restore", "--json", "writer"]).good().json();
    assert_eq!(report["valid"], true);
    assert_eq!(
        (&report["restored"]["processes"], &report["restored"]["threads"]),
        (&2.into(), &2.into())
    );
    assert!(before == snapshot(&data), "files have changed");
    assert_eq!(cpr.cpr(["ps", "--json"]).good().json()["jobs"], serde_json::json!([]));
    assert_eq!(state(&cpr, "writer"), "proven");
    let table = cpr.cpr(["images"]).good().text();
    assert!(table.contains("STATE") && table.contains("proven"), "{table}");
    // Plain verification takes nothing back.
    cpr.cpr(["verify", &image]).good();
    assert_eq!(state(&cpr, "writer"), "proven");

    // A file of the same name and contents is another file; a changed one even more.
    let copy = format!("{image}.copy");
    cpr.program(&["cp", "-p", &image, &copy]).good();
    fs::rename(&copy, &image).expect("the image can be replaced");
    assert_eq!(state(&cpr, "writer"), "written");
    cpr.cpr(["verify", "--restore", &image]).good();
    assert_eq!(state(&cpr, "writer"), "proven");
    let mut bytes = fs::read(&image).expect("the image can be read");
    bytes[4096 + 100] ^= 1;
    fs::remove_file(&image).expect("the image can be removed");
    fs::write(&image, bytes).expect("the image can be written");
    cpr.give(Path::new(&image));
    assert_eq!(state(&cpr, "writer"), "written");
    assert_eq!(cpr.cpr(["verify", "--restore", &image]).code, DAMAGED);
    assert_eq!(state(&cpr, "writer"), "written");
}

#[test]
fn an_image_is_proven_and_nothing_changes_root() {
    proves("an_image_is_proven_and_nothing_changes_root", As::Root);
}

#[test]
fn an_image_is_proven_and_nothing_changes_user() {
    proves("an_image_is_proven_and_nothing_changes_user", As::User);
}

fn beside_the_living(test: &str, user: As) {
    let Some(cpr) = Cpr::new(test, user) else { return };
    let data = start(&cpr, "calm");
    cpr.checkpoint("writer", &[]);
    // The job holds the lock, the socket's name and the FIFO at this very moment.
    cpr.cpr(["verify", "--restore", "writer"]).good();
    assert!(cpr.is_running("writer"));
    fs::write(data.join("stop"), "").expect("a file can be made");
    assert_eq!(
        cpr.wait("writer"),
        0,
        "{}",
        String::from_utf8_lossy(&cpr.logs("writer"))
    );
}

#[test]
fn an_image_is_proven_beside_the_living_job_root() {
    beside_the_living("an_image_is_proven_beside_the_living_job_root", As::Root);
}

#[test]
fn an_image_is_proven_beside_the_living_job_user() {
    beside_the_living("an_image_is_proven_beside_the_living_job_user", As::User);
}

#[test]
fn what_sleeps_or_stands_still_is_proven_too() {
    let Some(cpr) = Cpr::new("what_sleeps_or_stands_still_is_proven_too", As::User) else {
        return;
    };
    let script = "sleep 1000 & kill -STOP $!; sleep 1001 & echo READY; wait";
    cpr.run_detached("still", &["--terminal"], &["sh", "-c", script]);
    let ready = || cpr.cpr(["check", "still"]).code == 0 && cpr.cpr(["checkpoint", "still"]).good().code == 0;
    wait_until(PATIENCE, "all processes are there", || {
        let newest = if ready() {
            cpr.cpr(["inspect", "--json", "still"]).good().json()
        } else {
            return false;
        };
        newest["manifest"]["processes"].as_array().map(Vec::len) == Some(3)
    });
    let report = cpr.cpr(["verify", "--restore", "--json", "still"]).good().json();
    assert_eq!(report["restored"]["processes"], 3);
}

/// What a job changes in layers (overlay) it changes in memory of the sandbox: beside the living job, and without it.
fn layers(test: &str, user: As) {
    if !knows_file_system("overlay") {
        skip!(test, "this kernel has no overlay file system (overlay)");
    }
    let Some(cpr) = Cpr::new(test, user) else { return };
    let program = compile(&cpr, "layers");
    let victim = Victim::start(&cpr, &program, "proven", &[]);
    let directory = fs::read_dir(&cpr.work).expect("the directory can be read").flatten();
    let directory = directory.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("layers-")
    });
    let directory = directory.expect("the victim has made it");
    let look = || ["upper", "top", "bottom"].map(|name| snapshot(&directory.join(name)));
    cpr.checkpoint(victim.job, &[]);
    let before = look();
    assert!(before[0].iter().any(|(name, ..)| name == "made"), "{before:?}");
    cpr.cpr(["verify", "--restore", victim.job]).good();
    assert!(before == look(), "the living job's changes have changed");
    cpr.checkpoint(victim.job, &["--stop"]);
    let before = look();
    cpr.cpr(["verify", "--restore", victim.job]).good();
    assert_eq!(state(&cpr, victim.job), "proven");
    assert!(before == look(), "changes have changed");
    cpr.restart(victim.job);
    victim.check();
}

#[test]
fn layers_are_proven_and_nothing_changes_root() {
    layers("layers_are_proven_and_nothing_changes_root", As::Root);
}

#[test]
fn layers_are_proven_and_nothing_changes_user() {
    layers("layers_are_proven_and_nothing_changes_user", As::User);
}

#[test]
fn an_image_that_cannot_be_restarted_is_not_proven() {
    let Some(cpr) = Cpr::new("an_image_that_cannot_be_restarted_is_not_proven", As::User) else {
        return;
    };
    let program = cpr.work.join("sleeper");
    let mut command = Command::new("cp");
    command.arg("/bin/sleep").arg(&program);
    finish(&cpr.work, command, PATIENCE).good();
    cpr.give(&program);
    cpr.run_detached("sleeper", &[], &[program.display().to_string(), "1000".to_owned()]);
    cpr.checkpoint("sleeper", &["--stop"]);
    cpr.cpr(["verify", "--restore", "sleeper"]).good();
    fs::remove_file(&program).expect("the program can be removed");
    assert_eq!(cpr.cpr(["verify", "--restore", "sleeper"]).code, INCOMPATIBLE);
}

#[test]
fn what_is_known_of_an_increment_is_known_of_all_it_needs() {
    let Some(cpr) = Cpr::new("what_is_known_of_an_increment", As::User) else {
        return;
    };
    start(&cpr, "calm");
    let full = cpr.checkpoint("writer", &["--incremental"])["image"]
        .as_str()
        .expect("there is an image")
        .to_owned();
    let increment = cpr.checkpoint("writer", &["--incremental"]);
    assert!(increment["parent"].is_string(), "{increment}");
    cpr.cpr(["verify", "--restore", "writer"]).good();
    assert_eq!(state(&cpr, "writer"), "proven");
    // The same contents, but who knows that?
    cpr.program(&["chmod", "u+w", &full]).good();
    assert_eq!(state(&cpr, "writer"), "written");
}
